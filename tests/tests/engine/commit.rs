//! `docker commit`: what a container has written becomes an image.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{Capability, Entry, Image, Machine, busybox, digest, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, ready_with_cri, run, succeed};

/// The topmost layer of an image as a tar.
fn topmost_layer(machine: &Machine, image: &str) -> PathBuf {
    let archive = machine.path("saved.tar").display().to_string();
    succeed(machine, &["save", "--output", &archive, image]);
    let read = |name: &str| machine.output("tar", &["-xOf", &archive, name]);
    let manifest: Value = serde_json::from_str(&read("manifest.json")).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap();
    let path = layers.last().unwrap().as_str().unwrap();
    let directory = machine.path("saved");
    fs::create_dir_all(&directory).unwrap();
    machine.output("tar", &["-xf", &archive, "-C", &directory.display().to_string(), path]);
    directory.join(path)
}

/// The mode and the owner of each entry of a tar, by its name.
fn entries(machine: &Machine, tar: &Path) -> BTreeMap<String, String> {
    let list = machine.output("tar", &["--numeric-owner", "-tvf", &tar.display().to_string()]);
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Mode, owner, size, date, time and name.
        (fields[5..].join(" "), fields[..2].join(" "))
    };
    list.lines().map(entry).collect()
}

/// One field of `docker inspect`.
fn field(machine: &Machine, name: &str, field: &str) -> Value {
    let text = succeed(machine, &["inspect", "--format", &format!("{{{{json {field}}}}}"), name]);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn what_a_container_has_changed_is_in_its_image_and_nothing_else() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, cri, _) = ready_with_cri().await;
    let layer = busybox()
        .directory("opt", 0o755)
        .directory("opt/old", 0o755)
        .file("opt/old/kept", b"lower")
        .directory("opt/moved", 0o711)
        .file("opt/moved/file", b"moved")
        .file("opt/gone", b"gone");
    let image = cri.pull_image(&machine, Image::simple(layer, &["sh"])).await;
    let script = "rm /opt/gone; rm -r /opt/old; mkdir /opt/old; echo upper > /opt/old/new; \
                  mv /opt/moved /opt/renamed; \
                  echo linked > /opt/a; ln /opt/a /opt/b; ln -s a /opt/link; \
                  chown 7:8 /opt/a; mkfifo -m 600 /opt/fifo; \
                  dd if=/dev/zero of=/opt/sparse bs=1 count=1 seek=64M 2>/dev/null; \
                  echo volume > /data/in; echo x > /etc/hostname; mkdir -m 1777 /opt/sticky; \
                  chmod 4755 /opt/renamed/file";
    let run_it = ["run", "--name", "c1", "-v", "/data", &image, "sh", "-c", script];
    succeed(&machine, &run_it);
    let id = succeed(&machine, &["commit", "c1", "made:1"]);
    assert_eq!(succeed(&machine, &["inspect", "--format", "{{.Id}}", "made:1"]), id);
    let layer = topmost_layer(&machine, "made:1");
    let diff_id = digest(&fs::read(&layer).unwrap());
    assert_eq!(field(&machine, "made:1", ".RootFS.Layers")[1], diff_id);
    let entries = entries(&machine, &layer);
    let shown: Vec<(&str, &str)> =
        entries.iter().map(|(name, rest)| (name.as_str(), rest.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("opt/", "drwxr-xr-x 0/0"),
            ("opt/.wh.gone", "-rw------- 0/0"),
            ("opt/.wh.moved", "-rw------- 0/0"),
            ("opt/a", "-rw-r--r-- 7/8"),
            ("opt/b link to opt/a", "hrw-r--r-- 7/8"),
            ("opt/fifo", "prw------- 0/0"),
            ("opt/link -> a", "lrwxrwxrwx 0/0"),
            ("opt/old/", "drwxr-xr-x 0/0"),
            ("opt/old/.wh..wh..opq", "-rwxr-xr-x 0/0"),
            ("opt/old/new", "-rw-r--r-- 0/0"),
            ("opt/renamed/", "drwx--x--x 0/0"),
            ("opt/renamed/file", "-rwsr-xr-x 0/0"),
            ("opt/sparse", "-rw-r--r-- 0/0"),
            ("opt/sticky/", "drwxrwxrwt 0/0"),
        ]
    );
    let look = "cat /opt/old/* /opt/renamed/file /opt/b; ls /opt /data; \
                stat -c '%h %u:%g' /opt/a; stat -c '%s %b' /opt/sparse; test -s /etc/hosts";
    let seen = run(&machine, &[], "made:1", look);
    let expected = "upper\nmovedlinked\n/data:\n\n/opt:\na\nb\nfifo\nlink\nold\nrenamed\nsparse\n\
                    sticky\n2 7:8\n67108865 8";
    assert_eq!(seen.replace("\n\n/data", "\n/data"), expected);
    // The same container gives the same layer, and so does the image after save and load.
    succeed(&machine, &["commit", "c1", "made:2"]);
    assert_eq!(field(&machine, "made:2", ".RootFS.Layers")[1], diff_id);
    let archive = machine.path("saved.tar").display().to_string();
    succeed(&machine, &["save", "--output", &archive, "made:1"]);
    succeed(&machine, &["rm", "-v", "c1"]);
    succeed(&machine, &["rmi", "made:1", "made:2"]);
    assert_eq!(succeed(&machine, &["load", "--input", &archive]), "Loaded image: made:1");
    assert_eq!(succeed(&machine, &["inspect", "--format", "{{.Id}}", "made:1"]), id);
    assert_eq!(run(&machine, &[], "made:1", "cat /opt/old/new"), "upper");
    machine.assert_clean().await;
}

#[tokio::test]
async fn capabilities_and_user_attributes_are_kept() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, cri, _) = ready_with_cri().await;
    // CAP_NET_RAW, in the second revision of the attribute.
    let mut record = b"61 SCHILY.xattr.security.capability=".to_vec();
    record.extend([1, 0, 0, 2, 0, 0x20, 0, 0]);
    record.extend([0; 12]);
    record.push(b'\n');
    assert_eq!(record.len(), 57);
    record[..2].copy_from_slice(b"57");
    let pax =
        Entry { kind: tar::EntryType::XHeader, name: "pax", content: &record, ..Entry::default() };
    let layer = busybox().entry(&pax).file("program", b"#!/bin/sh");
    let image = cri.pull_image(&machine, Image::simple(layer, &["sh"])).await;
    succeed(&machine, &["run", "--name", "c1", &image, "touch", "/program"]);
    succeed(&machine, &["commit", "c1", "made"]);
    let layer = fs::read(topmost_layer(&machine, "made")).unwrap();
    assert!(layer.windows(record.len()).any(|window| window == record), "no capability");
    succeed(&machine, &["rm", "c1"]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_running_container_is_paused_while_it_is_committed() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let script = "echo 1 > /file; while true; do echo >> /count; done";
    succeed(&machine, &["run", "-d", "--name", "c1", &image, "sh", "-c", script]);
    machine_has(&machine, "c1", "test -s /count").await;
    let id = succeed(&machine, &["commit", "-a", "me", "-m", "why", "c1"]);
    let seen = engine.events_until("c1", "unpause", 1).await;
    let end = &seen[seen.len() - 3..];
    assert_eq!(end, ["pause", "commit", "unpause"]);
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "running");
    let made = engine.get(&format!("/images/{id}/json")).await;
    assert_eq!(
        (&made["RepoTags"], &made["Author"], &made["Comment"]),
        (&json!([]), &json!("me"), &json!("why"))
    );
    assert_eq!(made["Config"]["Cmd"], json!(["sh", "-c", script]));
    let history = engine.get(&format!("/images/{id}/history")).await;
    assert_eq!(history[0]["CreatedBy"], format!("sh -c {script}"));
    assert_eq!(run(&machine, &[], &id, "cat /file"), "1");
    // One that is paused already stays so, and one may be committed without.
    succeed(&machine, &["pause", "c1"]);
    succeed(&machine, &["commit", "c1"]);
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "paused");
    succeed(&machine, &["unpause", "c1"]);
    succeed(&machine, &["commit", "--pause=false", "c1"]);
    assert_eq!(engine.events_until("c1", "commit", 3).await.last().unwrap(), "commit");
    engine.remove("c1").await;
    machine.assert_clean().await;
}

/// Waits until a script succeeds in a container.
async fn machine_has(machine: &Machine, container: &str, script: &str) {
    berth_tests::eventually(script, async || {
        machine.docker(&["exec", container, "sh", "-c", script]).status.success()
    })
    .await;
}

#[tokio::test]
async fn the_config_is_the_requests_and_else_the_containers() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let own = json!({
        "Image": image, "Cmd": ["own"], "Env": ["A=1", "B=2"], "Labels": { "l": "own" },
        "ExposedPorts": { "80/tcp": {} }, "User": "7",
    });
    engine.create("c1", own).await;
    let asked = json!({ "Cmd": ["asked"], "Env": ["A=3"], "ExposedPorts": { "81/tcp": {} } });
    let made = engine.post("/commit?container=c1&repo=made&tag=1", asked).await;
    let config = engine.get("/images/made:1/json").await["Config"].clone();
    assert_eq!(config["Cmd"], json!(["asked"]));
    assert_eq!(&config["Env"].as_array().unwrap()[..2], [json!("A=3"), json!("B=2")]);
    assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "81/tcp": {} }));
    assert_eq!((&config["Labels"], &config["User"]), (&json!({ "l": "own" }), &json!("7")));
    // Nothing was written, so there is a step and no layer.
    let parent = engine.get(&format!("/images/{image}/json")).await;
    let image = engine.get(&format!("/images/{}/json", made["Id"].as_str().unwrap())).await;
    assert_eq!(image["RootFS"], parent["RootFS"]);
    assert_eq!(image["Parent"], parent["Id"]);
    let history = engine.get("/images/made:1/history").await;
    assert_eq!((&history[0]["Size"], &history[0]["CreatedBy"]), (&json!(0), &json!("own")));
    for body in [Value::Null, json!({})] {
        let other = engine.post("/commit?container=c1&repo=made&tag=2", body).await;
        let other = engine.get(&format!("/images/{}/json", other["Id"].as_str().unwrap())).await;
        assert_eq!(other["Config"]["Cmd"], json!(["own"]));
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_committed_is_refused_as_dockerd_does() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("c1", json!({ "Image": image, "Cmd": ["true"] })).await;
    let upper = "invalid reference format: repository name (library/UPPER) must be lowercase";
    for (query, body, expected) in [
        ("container=nope", Value::Null, (404, "No such container: nope")),
        ("container=c1&repo=UPPER", Value::Null, (400, upper)),
        ("container=c1&repo=a&tag=b@c", Value::Null, (400, "invalid tag format")),
        (
            "container=c1",
            json!({ "Image": 5 }),
            (
                400,
                "invalid JSON: json: cannot unmarshal number into Go struct field CreateRequest.Config.Image of type string",
            ),
        ),
    ] {
        let (status, answer) =
            engine.request("POST", &format!("/commit?{query}"), Some(body)).await;
        assert_eq!((status, answer["message"].as_str().unwrap()), expected, "{query}");
    }
    let refused = fail(&machine, &["commit", "nope"]);
    assert_eq!(refused, "Error response from daemon: No such container: nope");
    assert_eq!(engine.get("/images/json").await.as_array().unwrap().len(), 1);
    engine.remove("c1").await;
    machine.assert_clean().await;
}
