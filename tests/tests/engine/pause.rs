//! Pause and unpause, and what else comes to a paused container.

use std::{fs, path::Path};

use berth_tests::{Engine, Image, Machine, engine, has_unified_cgroups};
use serde_json::json;

use crate::ready;

#[tokio::test]
async fn a_paused_container_stands_still_refuses_and_goes_on() {
    let (machine, daemon, engine, image) = ready().await;
    let ticks = "while :; do echo tick; usleep 10000; done";
    engine.create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", ticks] })).await;
    let pause = "/containers/c1/pause";
    let (status, _) = engine.request("POST", pause, None).await;
    assert_eq!(status, 409);
    engine.start("c1").await;
    engine.post(pause, json!(null)).await;
    let state = engine.inspect("c1").await["State"].clone();
    assert_eq!(state["Status"], "paused");
    assert_eq!((&state["Running"], &state["Paused"]), (&json!(true), &json!(true)));
    let list = engine.get("/containers/json").await;
    assert!(list[0]["Status"].as_str().unwrap().ends_with("(Paused)"), "{list}");
    for (method, path) in [
        ("POST", pause),
        ("POST", "/containers/c1/start"),
        ("POST", "/containers/c1/exec"),
        ("DELETE", "/containers/c1"),
    ] {
        let body = path.ends_with("exec").then(|| json!({ "Cmd": ["true"] }));
        let (status, answer) = engine.request(method, path, body).await;
        assert_eq!(status, 409, "{path}: {answer}");
    }
    // The kernel remembers it for the next daemon.
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "paused");
    let before = engine.get("/containers/c1/logs?stdout=1").await;
    engine.post("/containers/c1/unpause", json!(null)).await;
    let (status, _) = engine.request("POST", "/containers/c1/unpause", None).await;
    assert_eq!(status, 500);
    while engine.get("/containers/c1/logs?stdout=1").await == before {
        tokio::task::yield_now().await;
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_paused_container_can_be_stopped_and_killed_and_sees_signals_later() {
    let (machine, _daemon, engine, image) = ready().await;
    let script = "trap 'exit 7' TERM; trap 'echo hup' HUP; while :; do sleep 0.01; done";
    for name in ["stopped", "killed"] {
        engine.create(name, json!({ "Image": image, "Cmd": ["sh", "-c", script] })).await;
        engine.start(name).await;
        engine.post(&format!("/containers/{name}/pause"), json!(null)).await;
    }
    engine.post("/containers/stopped/kill?signal=HUP", json!(null)).await;
    // The image names no signal for stopping, so that any signal may be meant to end it.
    let status = engine.inspect("stopped").await["State"]["Status"].clone();
    assert_eq!(status, "running");
    engine.post("/containers/stopped/stop?t=60", json!(null)).await;
    engine.post("/containers/killed/kill", json!(null)).await;
    assert_eq!(engine.wait("killed").await, 137);
    for name in ["stopped", "killed"] {
        let events = engine.events_until(name, "die", 1).await;
        assert!(events.contains(&"unpause".to_owned()), "{events:?}");
        engine.remove(name).await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn where_there_is_no_v2_tree_the_freezer_of_v1_does_it() {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if has_unified_cgroups() || !freezer.join("cgroup.procs").exists() {
        return;
    }
    let mut machine = Machine::new();
    machine.config = engine::config();
    if Path::new(UNIFIED).join("cgroup.procs").exists() {
        machine.output("umount", &[UNIFIED]);
    }
    let daemon = machine.start().await;
    let image = daemon.cri().pull_image(&machine, Image::busybox()).await;
    let engine = Engine::of(&machine);
    let host = json!({ "CgroupParent": machine.cgroup_parent });
    let asked = json!({ "Image": image, "Cmd": ["sleep", "1000"], "HostConfig": host });
    let id = engine.create("c1", asked).await;
    let file = freezer.join(&machine.cgroup_parent).join(id).join("freezer.state");
    let state = || fs::read_to_string(&file).unwrap();
    engine.start("c1").await;
    engine.post("/containers/c1/pause", json!(null)).await;
    assert_eq!(state(), "FROZEN\n");
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "paused");
    engine.post("/containers/c1/unpause", json!(null)).await;
    assert_eq!(state(), "THAWED\n");
    engine.post("/containers/c1/pause", json!(null)).await;
    engine.post("/containers/c1/kill", json!(null)).await;
    assert_eq!(engine.wait("c1").await, 137);
    engine.remove("c1").await;
    machine.assert_clean().await;
}
