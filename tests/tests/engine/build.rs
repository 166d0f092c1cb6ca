//! `docker build` by the classic builder.

use std::{fs, io::Write, path::Path, process::Stdio, time::Instant};

use berth_tests::{
    Capability, Engine, Entry, FakeRegistry, Image, Layer, Machine, Response, finish, skip_without,
};
use serde_json::Value;

use crate::{fail, ready, succeed};

const TAR: &str = "application/x-tar";

/// Writes a context, and returns its path.
fn context(machine: &Machine, name: &str, files: &[(&str, &str)]) -> String {
    let directory = machine.path(name);
    for (path, content) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory.display().to_string()
}

/// What `docker build` prints without the lines of the client.
fn build(machine: &Machine, arguments: &[&str]) -> String {
    let output = succeed(machine, &[&["build"], arguments].concat());
    output
        .lines()
        .filter(|line| !line.starts_with("Sending build context"))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// The output with the same words for all ids.
fn without_ids(output: &str) -> String {
    let is_id = |word: &str| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let line = |line: &str| {
        let words = line.split(' ').map(|word| if is_id(word) { "ID" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    output.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The lines that an answer has.
fn lines(answer: &str) -> Vec<Value> {
    answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The failure at the end of an answer, or the whole answer.
async fn failure(engine: &Engine, query: &str, context: Layer) -> String {
    let (status, answer) = engine.send(&format!("/build?{query}"), TAR, context.bytes()).await;
    if status != 200 {
        let answer: Value = serde_json::from_str(&answer).unwrap();
        return answer["message"].as_str().unwrap().to_owned();
    }
    let last = lines(&answer).pop().unwrap();
    last["error"].as_str().unwrap_or(&answer).to_owned()
}

/// Nothing of a build is left but images.
async fn assert_nothing_left(machine: &Machine, engine: &Engine) {
    assert_eq!(engine.get("/containers/json?all=1").await.as_array().unwrap().len(), 0);
    let builds = machine.path("root/engine/builds");
    let left = fs::read_dir(&builds).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{}", builds.display());
    machine.assert_clean().await;
}

#[tokio::test]
async fn the_tutorials_image_is_built_and_built_again_from_the_cache() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let file = format!(
        "FROM {busybox}\nMAINTAINER someone\nRUN echo moo > /cow\nENTRYPOINT [\"/bin/cat\"]\n\
         CMD [\"/cow\"]\n"
    );
    let directory = context(&machine, "cow", &[("Dockerfile", &file)]);
    let first = build(&machine, &["-t", "amount/cowsay", &directory]);
    let expected = format!(
        "Step 1/5 : FROM {busybox}\n ---> ID\nStep 2/5 : MAINTAINER someone\n ---> Running in ID\n \
         ---> Removed intermediate container ID\n ---> ID\nStep 3/5 : RUN echo moo > /cow\n ---> \
         Running in ID\n ---> Removed intermediate container ID\n ---> ID\nStep 4/5 : ENTRYPOINT \
         [\"/bin/cat\"]\n ---> Running in ID\n ---> Removed intermediate container ID\n ---> ID\n\
         Step 5/5 : CMD [\"/cow\"]\n ---> Running in ID\n ---> Removed intermediate container ID\n \
         ---> ID\nSuccessfully built ID\nSuccessfully tagged amount/cowsay:latest"
    );
    assert_eq!(without_ids(&first), expected);
    assert_eq!(succeed(&machine, &["run", "--rm", "amount/cowsay"]), "moo");
    let id = succeed(&machine, &["inspect", "-f", "{{.Id}}", "amount/cowsay"]);
    let again = build(&machine, &["-t", "amount/cowsay:two", &directory]);
    assert_eq!(again.matches(" ---> Using cache\n").count(), 4, "{again}");
    assert_eq!(succeed(&machine, &["inspect", "-f", "{{.Id}}", "amount/cowsay:two"]), id);
    assert_eq!(succeed(&machine, &["build", "-q", &directory]), id);
    let other = build(&machine, &["--no-cache", &directory]);
    assert!(!other.contains("Using cache"), "{other}");
    succeed(&machine, &["rmi", "-f", "amount/cowsay", "amount/cowsay:two"]);
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn ten_steps_from_the_cache_take_no_time() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let steps: String = (0..9).map(|n| format!("RUN echo {n} > /{n}\n")).collect();
    let file = format!("FROM {busybox}\n{steps}");
    let tar = || Layer::new().file("Dockerfile", file.as_bytes()).bytes();
    let (_, first) = engine.send("/build", TAR, tar()).await;
    assert!(first.contains("Successfully built"), "{first}");
    let begun = Instant::now();
    let (_, again) = engine.send("/build", TAR, tar()).await;
    let took = begun.elapsed();
    assert_eq!(again.matches("Using cache").count(), 9, "{again}");
    // The promise is 200 ms, of a release build on a machine that does nothing else.
    assert!(took.as_secs() < 2, "{took:?}");
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn every_instruction_reaches_the_image() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let file = "ARG BASE\nFROM ${BASE}\nARG WHO=nobody\nARG GIVEN\nENV A=1 B=\"two words\"\nLABEL \
                a=$A\nWORKDIR /w\nWORKDIR sub\nRUN echo \"$WHO $GIVEN $B\" > args\nCOPY one.txt .\n\
                COPY one.txt two.txt /several/\nCOPY *.txt dir /glob/\nCOPY dir /dir\nCOPY link \
                /linked\nCOPY --chown=1:2 dir/sub /owned\nADD some.tar /unpacked\nUSER 5:6\nRUN id \
                -u > /tmp/user\nEXPOSE 80 443/udp\nVOLUME /vol\nSTOPSIGNAL SIGINT\nHEALTHCHECK \
                --retries=2 CMD true\nSHELL [\"/bin/sh\",\"-e\",\"-c\"]\nCMD echo cmd\nENTRYPOINT \
                [\"sh\"]\nONBUILD RUN echo triggered > /tmp/triggered\n";
    let files = [("Dockerfile", file), ("one.txt", "1"), ("two.txt", "2"), ("dir/sub/deep", "d")];
    let directory = context(&machine, "all", &files);
    std::os::unix::fs::symlink("one.txt", Path::new(&directory).join("link")).unwrap();
    let tar = Layer::new().file("in/tar", b"t").bytes();
    fs::write(Path::new(&directory).join("some.tar"), tar).unwrap();
    let base = format!("BASE={busybox}");
    let arguments = ["--build-arg", &base, "--build-arg", "GIVEN=g", "--build-arg", "UNUSED=u"];
    let output =
        build(&machine, &[&arguments[..], &["--label", "own=l", "-t", "all", &directory]].concat());
    let unused = "[Warning] One or more build-args [UNUSED] were not consumed\n";
    assert!(output.contains(unused), "{output}");
    let image = engine.get("/images/all/json").await;
    let config = &image["Config"];
    for (pointer, expected) in [
        ("/Cmd", r#"["/bin/sh","-e","-c","echo cmd"]"#),
        ("/Entrypoint", r#"["sh"]"#),
        ("/ExposedPorts", r#"{"443/udp":{},"80/tcp":{}}"#),
        ("/Volumes", r#"{"/vol":{}}"#),
        ("/Labels", r#"{"a":"1","own":"l"}"#),
        ("/User", r#""5:6""#),
        ("/WorkingDir", r#""/w/sub""#),
        ("/StopSignal", r#""SIGINT""#),
        ("/OnBuild", r#"["RUN echo triggered > /tmp/triggered"]"#),
        ("/Healthcheck/Retries", "2"),
    ] {
        assert_eq!(config.pointer(pointer).unwrap().to_string(), expected, "{pointer}");
    }
    let script = "cd /; cat w/sub/args tmp/user; find several glob dir linked owned unpacked -type f | \
                  sort | xargs stat -c '%n %a %u %g'";
    let arguments = ["run", "--rm", "-u", "0", "all", "-c", script];
    let seen = succeed(&machine, &arguments);
    let expected = "nobody g two words\n5\ndir/sub/deep 644 0 0\nglob/one.txt 644 0 0\nglob/sub/deep \
                    644 0 0\nglob/two.txt 644 0 0\nlinked 644 0 0\nowned/deep 644 1 2\n\
                    several/one.txt 644 0 0\nseveral/two.txt 644 0 0\nunpacked/in/tar 644 0 0";
    assert_eq!(seen, expected);
    let upon = context(&machine, "upon", &[("Dockerfile", "FROM all\nRUN cat /tmp/triggered\n")]);
    let output = build(&machine, &[&upon]);
    assert!(output.contains("# Executing 1 build trigger\n ---> Running in "), "{output}");
    assert!(output.contains("\ntriggered\n"), "{output}");
    succeed(&machine, &["rmi", "-f", "all"]);
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn stages_hand_on_files() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let file = format!(
        "FROM {busybox} AS first\nRUN echo built > /built && chown 3:4 /built\nFROM first AS \
         second\nCOPY f /f\nFROM scratch\nCOPY --from=first /built /bin/busybox /\nCOPY --from=1 /f \
         /f\nCOPY --from={busybox} /bin/busybox /other/\nCMD [\"/busybox\", \"stat\", \"-c\", \
         \"%n %u %g\", \"/built\", \"/f\", \"/other/busybox\"]\n"
    );
    let directory = context(&machine, "stages", &[("Dockerfile", &file), ("f", "x")]);
    build(&machine, &["-t", "staged", &directory]);
    let seen = succeed(&machine, &["run", "--rm", "staged"]);
    assert_eq!(seen, "/built 3 4\n/f 0 0\n/other/busybox 0 0");
    // The steps upon nothing are found again, too.
    let again = build(&machine, &[&directory]);
    assert!(!again.contains("Running in"), "{again}");
    let first = build(&machine, &["--target", "FIRST", &directory]);
    assert_eq!(first.matches("Step ").count(), 2, "{first}");
    let error = fail(&machine, &["build", "--target", "nope", &directory]);
    assert!(error.contains("target stage \"nope\" could not be found"), "{error}");
    succeed(&machine, &["rmi", "-f", "staged"]);
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn failures_are_told_in_dockers_words() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    for (steps, expected) in [
        ("RUN false", "The command '/bin/sh -c false' returned a non-zero code: 1"),
        (
            "COPY nope /",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: \
             file does not exist",
        ),
        (
            "COPY f g /dest",
            "When using COPY with more than one source file, the destination must be a directory and \
             end with a /",
        ),
        ("COPY no* /", "COPY failed: no source files were specified"),
        ("COPY ../f /", "COPY failed: forbidden path outside the build context: ../f ()"),
        ("COPY --from=nope-7 /x /", "invalid from flag value nope-7: "),
        (
            "COPY --chown=nope f /",
            "unable to convert uid/gid chown string to host mapping: can't find uid for user nope: no \
             such user: nope",
        ),
        ("COPY --from=0 /x /", "invalid from flag value 0: refers to current build stage"),
        ("NOPE", "dockerfile parse error on line 2: unknown instruction: NOPE"),
    ] {
        let file = format!("FROM {busybox}\n{steps}\n");
        let tar = Layer::new().file("Dockerfile", file.as_bytes()).file("f", b"f").file("g", b"g");
        let message = failure(&engine, "forcerm=1", tar).await;
        assert!(message.starts_with(expected), "{steps}: {message}");
    }
    let file = format!("FROM {busybox}\nRUN exit 7\n");
    let tar = || Layer::new().file("Dockerfile", file.as_bytes()).bytes();
    let (_, answer) = engine.send("/build?forcerm=1", TAR, tar()).await;
    assert_eq!(lines(&answer).pop().unwrap()["errorDetail"]["code"], 7);
    assert_eq!(
        failure(&engine, "", Layer::new()).await,
        "Cannot locate specified Dockerfile: Dockerfile"
    );
    for (query, expected) in [
        ("version=2", "this daemon has no BuildKit"),
        ("squash=1", "squash is only supported with experimental mode"),
        ("remote=https://github.com/a/b.git", "building from a git repository is not supported"),
    ] {
        let message = failure(&engine, query, Layer::new()).await;
        assert!(message.starts_with(expected), "{query}: {message}");
    }
    // Whoever wants to look into a container whose step has failed can.
    engine.send("/build", TAR, tar()).await;
    let left = engine.get("/containers/json?all=1").await;
    assert_eq!(left[0]["Command"], "/bin/sh -c 'exit 7'", "{left}");
    engine.remove(left[0]["Id"].as_str().unwrap()).await;
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn a_hostile_context_reaches_nothing_outside() {
    let (machine, _daemon, engine, busybox) = ready().await;
    let secret = machine.path("secret");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.display().to_string();
    let file = |steps: &str| format!("FROM {busybox}\n{steps}\n").into_bytes();
    let missing = "file does not exist";
    for (what, tar, expected) in [
        (
            "a link out of the context",
            Layer::new().file("Dockerfile", &file("COPY link /")).symlink("link", &secret),
            missing,
        ),
        (
            "a file through a link to a directory outside",
            Layer::new()
                .file("Dockerfile", &file("COPY out/secret /"))
                .symlink("out", &machine.path("").display().to_string()),
            missing,
        ),
        (
            "a Dockerfile that is a link out",
            Layer::new().symlink("Dockerfile", &secret),
            "Cannot locate specified Dockerfile: Dockerfile",
        ),
        (
            "a Dockerfile that is a device",
            Layer::new().device(
                &Entry {
                    kind: tar::EntryType::Char,
                    name: "Dockerfile",
                    mode: 0o644,
                    ..Entry::default()
                },
                1,
                3,
            ),
            "Dockerfile is no regular file",
        ),
        (
            "a Dockerfile that is a FIFO",
            Layer::new().entry(&Entry {
                kind: tar::EntryType::Fifo,
                name: "Dockerfile",
                mode: 0o644,
                ..Entry::default()
            }),
            "Dockerfile is no regular file",
        ),
        ("no tar", Layer::new().file("x\u{1}", &[]), "Cannot locate"),
    ] {
        let message = failure(&engine, "forcerm=1", tar).await;
        assert!(message.contains(expected), "{what}: {message}");
    }
    // Names that lead upwards end at the top of the context.
    let tar = Layer::new()
        .file("Dockerfile", &file("COPY . /c/\nRUN ls -A /c; cat /c/up; test ! -e /c/link/secret"))
        .file("../../up", b"inside")
        .symlink("link", "/");
    let (_, answer) = engine.send("/build", TAR, tar.bytes()).await;
    assert!(answer.contains("inside") && answer.contains("Successfully built"), "{answer}");
    // Links of the image lead nowhere else than in the image.
    let tar = Layer::new()
        .file("Dockerfile", &file("RUN ln -s /../../../.. /up\nCOPY f /up/f\nRUN cat /f"))
        .file("f", b"content");
    let (_, answer) = engine.send("/build", TAR, tar.bytes()).await;
    assert!(answer.contains("content") && !Path::new("/f").exists(), "{answer}");
    // A tar in the context is no better than the context.
    let inner =
        Layer::new().symlink("out", "/").file("out/escaped", b"x").file("../up", b"y").bytes();
    let tar = Layer::new()
        .file("Dockerfile", &file("ADD in.tar /t/\nRUN find /t"))
        .file("in.tar", &inner);
    engine.send("/build?forcerm=1", TAR, tar.bytes()).await;
    assert!(!Path::new("/escaped").exists() && !Path::new("/up").exists());
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_build() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, busybox) = ready().await;
    let file = format!("FROM {busybox}\nRUN sleep 1000\n");
    let directory = context(&machine, "sleeps", &[("Dockerfile", &file)]);
    let mut client = machine.docker_command(&["build", "-t", "never", &directory]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = async |count: usize| {
        loop {
            let all = engine.get("/containers/json?all=1").await;
            let all = all.as_array().unwrap();
            if all.len() == count && all.iter().all(|one| one["State"] == "running") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    running(1).await;
    client.kill().unwrap();
    client.wait().unwrap();
    running(0).await;
    let (status, _) = engine.request("GET", "/images/never/json", None).await;
    assert_eq!(status, 404);
    drop(daemon);
    assert_nothing_left_on_disk(&machine);
}

fn assert_nothing_left_on_disk(machine: &Machine) {
    let builds = machine.path("root/engine/builds");
    assert_eq!(fs::read_dir(&builds).map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn a_build_is_cancelled_by_its_id_and_with_the_daemon() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, busybox) = ready().await;
    let file = format!("FROM {busybox}\nRUN echo begun; sleep 1000\n");
    let tar = || Layer::new().file("Dockerfile", file.as_bytes()).bytes();
    let building = {
        let engine = engine.clone();
        let tar = tar();
        tokio::spawn(async move { engine.send("/build?buildid=one", TAR, tar).await })
    };
    let runs = async |engine: &Engine| {
        while engine.get("/containers/json").await.as_array().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    runs(&engine).await;
    engine.post("/build/cancel?id=one", Value::Null).await;
    let (_, answer) = building.await.unwrap();
    assert_eq!(lines(&answer).pop().unwrap()["error"], "Build cancelled");
    let building = {
        let engine = engine.clone();
        let tar = tar();
        tokio::spawn(async move { drop(engine.send("/build", TAR, tar).await) })
    };
    runs(&engine).await;
    drop(daemon);
    building.abort();
    let _daemon = machine.start().await;
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn a_dockerfile_comes_alone_by_standard_input() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let mut client = machine.docker_command(&["build", "-q", "-"]);
    let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let file = format!("FROM {busybox}\nRUN echo out; echo err >&2\n");
    client.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    let output = finish(client);
    let id = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{output:?}");
    assert_nothing_left(&machine, &engine).await;
}

fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Response {
        status,
        headers: headers.iter().map(header).collect(),
        body: body.as_bytes().to_vec(),
        cut_after: None,
        pace: None,
    }
}

#[tokio::test]
async fn images_and_files_come_from_servers() {
    let (machine, _daemon, engine, busybox) = ready().await;
    let text = format!("FROM {busybox}\nRUN echo remote\n");
    let served = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        let modified = [("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")];
        match request.path.as_str() {
            "/files/data" => Some(response(200, &modified, "downloaded")),
            "/files/none" => Some(response(404, &[], "not here\n")),
            "/Dockerfile" => Some(response(200, &[("Content-Type", "text/plain")], &text)),
            _ => None,
        }
    });
    let host = &served.host;
    let file = |steps: &str| {
        let file = format!("FROM {host}/pulled:1\n{steps}\n");
        Layer::new().file("Dockerfile", file.as_bytes())
    };
    let steps = format!(
        "ADD http://{host}/files/data /dir/\nADD http://{host}/files/data /name\nRUN stat -c '%n %a %Y \
         %s' /dir/data /name"
    );
    let (_, answer) = engine.send("/build", TAR, file(&steps).bytes()).await;
    for part in ["Pulling from pulled", "/dir/data 600 1700000000 10", "/name 600 1700000000"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    let (_, again) = engine.send("/build", TAR, file(&steps).bytes()).await;
    assert!(!again.contains("Pulling from") && !again.contains("Running in"), "{again}");
    let (_, again) = engine.send("/build?pull=1", TAR, file(&steps).bytes()).await;
    assert!(again.contains("Status: Image is up to date for"), "{again}");
    let none = format!("sha256:{}", "0".repeat(64));
    for (steps, expected) in [
        (
            format!("ADD http://{host}/files/none /"),
            format!(
                "ADD failed: failed to GET http://{host}/files/none with status 404 Not Found: not here"
            ),
        ),
        (
            format!("ADD --checksum={none} http://{host}/files/data /"),
            "ADD failed: digest mismatch sha256:".to_owned(),
        ),
        (
            format!("COPY http://{host}/files/data /"),
            "COPY failed: source can't be a URL for COPY".to_owned(),
        ),
    ] {
        let message = failure(&engine, "", file(&steps)).await;
        assert!(message.starts_with(&expected), "{message}");
    }
    let query = format!("remote=http://{host}/Dockerfile");
    let (_, answer) = engine.send(&format!("/build?{query}"), TAR, Vec::new()).await;
    assert!(answer.contains("remote\\n"), "{answer}");
    assert_nothing_left(&machine, &engine).await;
}

#[tokio::test]
async fn two_builds_at_once_do_not_disturb_each_other() {
    let (machine, _daemon, engine, busybox) = ready().await;
    let build = async |number: usize| {
        let file = format!("FROM {busybox}\nCOPY f /f\nRUN cat /f; sleep 1; cat /f\n");
        let content = format!("content of {number}\n");
        let tar = Layer::new().file("Dockerfile", file.as_bytes()).file("f", content.as_bytes());
        let path = format!("/build?t=made:{number}");
        let (_, answer) = engine.send(&path, TAR, tar.bytes()).await;
        assert_eq!(answer.matches(&format!("content of {number}")).count(), 2, "{answer}");
    };
    tokio::join!(build(1), build(2), build(3));
    assert_nothing_left(&machine, &engine).await;
}
