//! Pause and unpause, and what else comes to a paused container.

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
