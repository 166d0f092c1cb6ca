//! `docker import`: a tar becomes an image of one layer.

use std::fs;

use berth_tests::{Capability, Layer, Machine, busybox, digest, gzip, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, run, succeed};

#[tokio::test]
async fn what_was_exported_is_imported_as_one_layer() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    succeed(&machine, &["run", "--name", "c1", &image, "sh", "-c", "echo 1 > /file; rm /bin/ps"]);
    let tar = machine.path("exported.tar").display().to_string();
    succeed(&machine, &["export", "--output", &tar, "c1"]);
    let options = ["-m", "why", "-c", "CMD [\"cat\", \"/file\"]", "-c", "ENV A=1 B=2"];
    let id = succeed(&machine, &[&["import"], &options[..], &[&tar, "made:1"]].concat());
    assert_eq!(succeed(&machine, &["run", "--rm", "made:1"]), "1");
    assert_eq!(run(&machine, &[], "made:1", "echo $A$B; ls /bin/ps || true"), "12");
    let made = engine.get("/images/made:1/json").await;
    assert_eq!((&made["Id"], &made["Parent"]), (&json!(id), &json!("")));
    assert_eq!(made["RootFS"]["Layers"], json!([digest(&fs::read(&tar).unwrap())]));
    let history = engine.get("/images/made:1/history").await;
    let steps = history.as_array().unwrap();
    assert_eq!((steps.len(), &steps[0]["Comment"]), (1, &json!("why")));
    // Compressed, without a name, and for another machine.
    for (name, content) in [
        ("gz", gzip(&fs::read(&tar).unwrap())),
        ("bz2", compressed(&machine, "bzip2", &tar)),
        ("xz", compressed(&machine, "xz", &tar)),
    ] {
        let path = machine.path(name);
        fs::write(&path, content).unwrap();
        let path = path.display().to_string();
        let id = succeed(&machine, &["import", "--platform", "linux/arm64", &path]);
        let made = engine.get(&format!("/images/{id}/json")).await;
        assert_eq!(made["RootFS"]["Layers"], json!([digest(&fs::read(&tar).unwrap())]), "{name}");
        assert_eq!((&made["Architecture"], &made["RepoTags"]), (&json!("arm64"), &json!([])));
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

/// A file, compressed by a program.
fn compressed(machine: &Machine, program: &str, path: &str) -> Vec<u8> {
    let mut command = machine.command(program);
    let output = command.args(["--stdout", path]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[tokio::test]
async fn a_tar_may_leave_out_its_directories() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let tar = busybox().file("a/b/file", b"content").bytes();
    let path = machine.path("tar");
    fs::write(&path, tar).unwrap();
    succeed(&machine, &["import", path.to_str().unwrap(), "made"]);
    assert_eq!(run(&machine, &[], "made", "stat -c '%a %u' /a/b; cat /a/b/file"), "755 0\ncontent");
    let archive = machine.path("saved").display().to_string();
    let id = succeed(&machine, &["inspect", "--format", "{{.Id}}", "made"]);
    succeed(&machine, &["save", "--output", &archive, "made"]);
    succeed(&machine, &["rmi", "made"]);
    succeed(&machine, &["load", "--input", &archive]);
    assert_eq!(succeed(&machine, &["inspect", "--format", "{{.Id}}", "made"]), id);
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_imported_says_so_and_leaves_nothing() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let path = |query: &str| format!("/images/create?fromSrc=-{query}");
    for (query, expected) in [
        (
            "&repo=UPPER",
            "invalid reference format: repository name (library/UPPER) must be lowercase",
        ),
        ("&changes=FROM%20x", "FROM is not a valid change command"),
        ("&platform=windows/amd64", "operating system is not supported: windows/amd64"),
    ] {
        let answer = engine.request("POST", &path(query), None).await;
        assert_eq!(answer, (400, json!({ "message": expected })), "{query}");
    }
    let (status, answer) =
        engine.request("POST", "/images/create?fromSrc=example.test/x.tar", None).await;
    assert_eq!(status, 400, "{answer}");
    let nonsense = machine.path("nonsense");
    let whole = busybox().bytes();
    let outside = Layer::new().file("../out", b"x").bytes();
    for content in [b"nonsense".repeat(200), whole[..whole.len() / 2].to_vec(), outside] {
        fs::write(&nonsense, content).unwrap();
        let refused = fail(&machine, &["import", nonsense.to_str().unwrap(), "made"]);
        assert!(refused.starts_with("Error response from daemon: "), "{refused}");
    }
    assert_eq!(engine.get("/images/json").await.as_array().unwrap().len(), 1);
    assert_eq!(engine.request("GET", "/images/made/json", None).await.0, 404);
    machine.assert_clean().await;
}

#[tokio::test]
async fn changes_are_instructions_of_a_dockerfile() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let own = json!({ "Image": image, "Cmd": ["own"], "Env": ["A=1"], "Labels": { "l": "own" } });
    engine.create("c1", own).await;
    let changes = [
        "ENV A=2 B=$A",
        "LABEL l=new m=n",
        "EXPOSE 80",
        "USER 7",
        "WORKDIR /w",
        "VOLUME /v",
        "ENTRYPOINT [\"e\"]",
        "ONBUILD RUN x",
        "STOPSIGNAL INT",
        "CMD new",
    ];
    let mut arguments = vec!["commit"];
    arguments.extend(changes.iter().flat_map(|change| ["--change", change]));
    arguments.extend(["c1", "made"]);
    succeed(&machine, &arguments);
    let config = engine.get("/images/made/json").await["Config"].clone();
    let env = config["Env"].as_array().unwrap();
    assert!(env.contains(&json!("A=2")) && env.contains(&json!("B=1")), "{env:?}");
    for (field, expected) in [
        ("Labels", json!({ "l": "new", "m": "n" })),
        ("ExposedPorts", json!({ "80/tcp": {} })),
        ("User", json!("7")),
        ("WorkingDir", json!("/w")),
        ("Volumes", json!({ "/v": {} })),
        ("Entrypoint", json!(["e"])),
        ("OnBuild", json!(["RUN x"])),
        ("StopSignal", json!("INT")),
        ("Cmd", json!(["/bin/sh", "-c", "new"])),
    ] {
        assert_eq!(config[field], expected, "{field}");
    }
    let refused =
        engine.request("POST", "/commit?container=c1&changes=RUN%20x", Some(Value::Null)).await;
    assert_eq!(refused, (400, json!({ "message": "RUN is not a valid change command" })));
    engine.remove("c1").await;
    machine.assert_clean().await;
}
