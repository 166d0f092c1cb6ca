//! `docker exec`.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use berth_tests::{Capability, Engine, Image, Machine, busybox, finish, skip_without};
use serde_json::json;

use crate::ready;

/// Runs the docker CLI with `input`.
fn docker_with_input(machine: &Machine, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = machine
        .docker_command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // In a thread: what comes back has to be read meanwhile.
    let sent = input.to_vec();
    let sending = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = finish(child);
    sending.join().unwrap();
    output
}

/// Starts a container that sleeps.
async fn sleeping(engine: &Engine, image: &str) {
    engine.create("c1", json!({ "Image": image, "Cmd": ["sleep", "1000"] })).await;
    engine.start("c1").await;
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_cli_gets_output_input_and_exit_codes_of_an_exec() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, &image).await;
    let output = machine.docker(&["exec", "c1", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(5), "out\n".to_owned(), "err\n".to_owned())
    );
    let env = [
        "exec",
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "-u",
        "1:2",
        "c1",
        "sh",
        "-c",
        "echo $A $(pwd) $(id -u):$(id -g)",
    ];
    assert_eq!(text(&machine.docker(&env).stdout), "1 /tmp 1:2\n");
    // All of a large input goes in, and its end ends the program.
    let input = vec![b'x'; 3 << 20];
    let output = docker_with_input(&machine, &["exec", "-i", "c1", "cat"], &input);
    assert!(output.status.success() && output.stdout == input, "{}", output.stdout.len());
    for (arguments, code, why) in [
        (&["c1", "nope"][..], 127, "exec: \"nope\": executable file not found in $PATH"),
        (&["c1", "/etc/passwd"], 126, "exec: \"/etc/passwd\": permission denied"),
        (&["c1", "/etc"], 126, "exec: \"/etc\": is a directory: permission denied"),
        (&["c1", "/nope/x"], 127, "exec: \"/nope/x\": stat /nope/x: no such file or directory"),
        (
            &["-w", "/nope", "c1", "true"],
            127,
            "chdir to cwd (\"/nope\") set in config.json failed: no such file or directory",
        ),
    ] {
        let output = machine.docker(&[&["exec"], arguments].concat());
        let during = "OCI runtime exec failed: exec failed: unable to start container process";
        assert_eq!(text(&output.stdout), format!("{during}: {why}\r\n"));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_exec_with_a_terminal_has_one_and_its_keys_leave_it() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, &image).await;
    let output = machine.on_terminal("exec -it c1 sh -c 'tty; stty size; exit 3'", b"");
    let shown = text(&output.stdout);
    assert!(shown.contains("/dev/pts/") && shown.contains("24 80"), "{shown}");
    assert_eq!(output.status.code(), Some(3));
    // The client leaves and its program stays.
    let output = machine.on_terminal("exec -it c1 sh -c 'echo ready; sleep 1000'", b"\x10\x11");
    assert!(text(&output.stdout).contains("read escape sequence"), "{}", text(&output.stdout));
    let ids = engine.inspect("c1").await["ExecIDs"].clone();
    assert_eq!(ids.as_array().map(Vec::len), Some(1), "{ids}");
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_privileged_exec_may_do_what_its_container_may_not() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, &image).await;
    let capabilities = |options: &[&str]| {
        let command = ["c1", "grep", "CapEff", "/proc/self/status"];
        let output = machine.docker(&[&["exec"], options, &command].concat());
        let shown = text(&output.stdout);
        u64::from_str_radix(shown.trim_start_matches("CapEff:").trim(), 16).unwrap()
    };
    let (plain, privileged) = (capabilities(&[]), capabilities(&["--privileged"]));
    assert_eq!(plain & privileged, plain);
    assert!(privileged.count_ones() > plain.count_ones(), "{plain:x} {privileged:x}");
    // By the names in the container's own files.
    let script = "echo own:x:7:8::/home/own: >> /etc/passwd; echo staff:x:9:own >> /etc/group";
    assert!(machine.docker(&["exec", "c1", "sh", "-c", script]).status.success());
    let show = "echo $(id -u):$(id -g) $HOME";
    for (user, expected) in
        [("own", "7:8 /home/own\n"), ("own:staff", "7:9 /home/own\n"), ("own:5", "7:5 /home/own\n")]
    {
        let output = machine.docker(&["exec", "-u", user, "c1", "sh", "-c", show]);
        assert_eq!(text(&output.stdout), expected, "{user}");
    }
    let refused = machine.docker(&["exec", "-u", "own:none", "c1", "true"]);
    let message = "unable to find group none: no matching entries in group file";
    assert!(text(&refused.stderr).contains(message), "{}", text(&refused.stderr));
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_exec_runs_once_is_inspected_and_is_refused_where_nothing_runs() {
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, &image).await;
    let (status, _) = engine.request("POST", "/containers/c1/exec", Some(json!({}))).await;
    assert_eq!(status, 400);
    let asked = json!({ "Cmd": "true", "AttachStdout": true, "Privileged": false });
    let id = engine.post("/containers/c1/exec", asked).await["Id"].clone();
    let id = id.as_str().unwrap();
    let before = engine.get(&format!("/exec/{id}/json")).await;
    assert_eq!((&before["Running"], &before["ExitCode"]), (&json!(false), &json!(null)));
    let start = format!("/exec/{id}/start");
    engine.post(&start, json!({ "Detach": true })).await;
    let again = engine.request("POST", &start, Some(json!({ "Detach": true }))).await;
    assert_eq!(again.0, 409, "{}", again.1);
    loop {
        let now = engine.get(&format!("/exec/{id}/json")).await;
        if now["Running"] == false {
            assert_eq!(now["ExitCode"], 0);
            break;
        }
    }
    engine.post("/containers/c1/stop?t=0", json!(null)).await;
    let refused =
        engine.request("POST", "/containers/c1/exec", Some(json!({ "Cmd": ["x"] }))).await;
    assert_eq!(refused.0, 409);
    assert!(refused.1["message"].as_str().unwrap().ends_with("is not running"));
    let missing = engine.request("GET", "/exec/missing/json", None).await;
    assert_eq!(missing, (404, json!({ "message": "No such exec instance: missing" })));
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_user_with_a_group_has_no_other_groups() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, &image).await;
    for (user, groups) in [("1000:1000", "1000"), ("web:web", "1000"), ("web", "1000 2000")] {
        for command in [&["run", "--rm", "-u", user, &image][..], &["exec", "-u", user, "c1"]] {
            let output = machine.docker(&[command, &["id", "-G"]].concat());
            assert_eq!(text(&output.stdout).trim_end(), groups, "{command:?}");
        }
    }
}

#[tokio::test]
async fn a_variable_without_a_value_is_unset() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, _image) = ready().await;
    let layer = busybox().bytes();
    let config = json!({ "Env": ["OF_IMAGE=1", "KEPT=1"] });
    let image = Image::docker(&[(layer.clone(), layer)], &config);
    let image = daemon.cri().pull_image(&machine, image).await;
    sleeping(&engine, &image).await;
    let names = |arguments: &[&str]| {
        let output = machine.docker(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines = text(&output.stdout);
        let mut names: Vec<_> = lines.lines().map(|line| line.split('=').next().unwrap()).collect();
        names.retain(|name| !["PATH", "HOSTNAME", "HOME"].contains(name));
        names.join(" ")
    };
    assert_eq!(names(&["exec", "c1", "env"]), "OF_IMAGE KEPT");
    let asked = ["-e", "OF_IMAGE", "-e", "NOWHERE", "-e", "NEW=1"];
    let exec = [&["exec"], &asked[..], &["c1", "env"]].concat();
    assert_eq!(names(&exec), "KEPT NEW");
    let run = [&["run", "--rm"], &asked[..], &[&image, "env"]].concat();
    assert_eq!(names(&run), "KEPT NEW");
    engine.remove("c1").await;
    machine.assert_clean().await;
}
