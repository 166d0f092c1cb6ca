//! `docker diff`.

use berth_tests::{Capability, skip_without};
use serde_json::json;

use crate::{ready, run, succeed};

#[tokio::test]
async fn changes_are_listed_as_dockerd_lists_them() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let data = machine.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let script = "echo x > /etc/new; echo y >> /etc/passwd; rm /etc/group; mkdir -p /a/b; \
                  touch /data/own; touch /tmp/made; rm /tmp/made";
    let config = json!({ "Binds": [format!("{}:/data", data.display())] });
    let body = json!({ "Image": image, "Cmd": ["sh", "-c", script], "HostConfig": config });
    engine.create("c1", body).await;
    assert_eq!(engine.get("/containers/c1/changes").await, json!(null));
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    let output = machine.docker(&["diff", "c1"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    let expected = "A /a\nA /a/b\nA /data\nC /etc\nD /etc/group\nA /etc/new\nC /etc/passwd\n";
    assert_eq!(shown, expected);
    let (status, _) = engine.request("GET", "/containers/none/changes", None).await;
    assert_eq!(status, 404);
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn every_root_has_what_dockerd_makes_in_it_and_that_is_no_change() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let script = "stat -c '%a %s' /.dockerenv; readlink /etc/mtab";
    assert_eq!(run(&machine, &[], &image, script), "755 0\n/proc/mounts");
    // A container has it before it has run, and when it has.
    let body = json!({ "Image": image, "Cmd": ["rm", "/.dockerenv"] });
    engine.create("c1", body).await;
    succeed(&machine, &["cp", "c1:/.dockerenv", machine.path("copied").to_str().unwrap()]);
    succeed(&machine, &["export", "-o", machine.path("tar").to_str().unwrap(), "c1"]);
    let list = machine.output("tar", &["-tf", machine.path("tar").to_str().unwrap()]);
    for name in [".dockerenv", "dev/console", "dev/shm/", "etc/hosts", "etc/mtab", "proc/", "sys/"]
    {
        assert!(list.lines().any(|line| line == name), "{name}: {list}");
    }
    assert_eq!(engine.get("/containers/c1/changes").await, json!(null));
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    assert_eq!(succeed(&machine, &["diff", "c1"]), "D /.dockerenv");
    engine.remove("c1").await;
    machine.assert_clean().await;
}
