//! Every named step of a build: the daemon is killed there, or the step fails. Nothing is left, and the
//! same build succeeds afterwards.

use std::fs;

use berth_tests::{Capability, Engine, Image, Layer, Machine, engine, faults, skip_without};
use serde_json::Value;

fn steps() -> Vec<String> {
    let names = faults::steps("berthd").into_iter();
    let steps: Vec<String> = names.filter(|step| step.starts_with("docker_build.")).collect();
    assert!(steps.len() > 4, "{steps:?}");
    steps
}

/// A machine whose programs can be made to fail.
fn machine() -> Machine {
    let mut machine = Machine::with_faults();
    machine.config = engine::config();
    machine
}

/// The text of the answer; empty if the connection broke.
async fn build(engine: &Engine, busybox: &str) -> String {
    let file = format!("FROM {busybox}\nWORKDIR /w\nCOPY f .\nRUN cat f > copy\nENV a=b\n");
    let tar = Layer::new().file("Dockerfile", file.as_bytes()).file("f", b"content");
    let sent = engine.try_send("/build?t=made", "application/x-tar", tar.bytes()).await;
    sent.map(|(_, text)| text).unwrap_or_default()
}

/// There is no container, no file of a build, and no image with the name unless `may_have_name`.
async fn assert_nothing_left(machine: &Machine, engine: &Engine, step: &str, may_have_name: bool) {
    let containers = engine.get("/containers/json?all=1").await;
    assert_eq!(containers.as_array().unwrap().len(), 0, "{step}: {containers}");
    for directory in ["builds", "containers"] {
        let path = machine.path("root/engine").join(directory);
        let left: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{step}: {left:?}");
    }
    let (status, _) = engine.request("GET", "/images/made/json", None).await;
    assert!(status == 404 || may_have_name, "{step}: the image has its name");
}

async fn clean_up(machine: &Machine, engine: &Engine, step: &str) {
    engine.request("DELETE", "/images/made?force=1", None).await;
    engine.post("/images/prune", Value::Null).await;
    let images = engine.get("/images/json?all=1").await;
    assert_eq!(images.as_array().unwrap().len(), 1, "{step}: {images}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_build_leaves_nothing() {
    if skip_without(Capability::Faults) {
        return;
    }
    let machine = machine();
    let mut daemon = machine.start().await;
    let busybox = daemon.cri().pull_image(&machine, Image::busybox()).await;
    let engine = Engine::of(&machine);
    for step in steps() {
        machine.arm(&step, "kill");
        let answer = build(&engine, &busybox).await;
        machine.reached(&step).await;
        assert!(!answer.contains("Successfully tagged"), "{step}: {answer}");
        daemon.wait();
        daemon = machine.start().await;
        assert_nothing_left(&machine, &engine, &step, step == "docker_build.tag").await;
        let answer = build(&engine, &busybox).await;
        assert!(answer.contains("Successfully tagged made:latest"), "{step}: {answer}");
        clean_up(&machine, &engine, &step).await;
    }
}

#[tokio::test]
async fn a_step_of_a_build_that_fails_is_told_and_leaves_nothing() {
    if skip_without(Capability::Faults) {
        return;
    }
    let machine = machine();
    let daemon = machine.start().await;
    let busybox = daemon.cri().pull_image(&machine, Image::busybox()).await;
    let engine = Engine::of(&machine);
    for step in steps() {
        machine.arm(&step, "fail");
        let answer = build(&engine, &busybox).await;
        machine.reached(&step).await;
        assert!(answer.contains(&format!("a test lets {step} fail")), "{step}: {answer}");
        for container in engine.get("/containers/json?all=1").await.as_array().unwrap() {
            // The container of a step that has failed is its user's.
            engine.remove(container["Id"].as_str().unwrap()).await;
        }
        assert_nothing_left(&machine, &engine, &step, step == "docker_build.tag").await;
        let answer = build(&engine, &busybox).await;
        assert!(answer.contains("Successfully tagged made:latest"), "{step}: {answer}");
        clean_up(&machine, &engine, &step).await;
    }
}
