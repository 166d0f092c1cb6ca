//! Restart policies: over ends, stops, crashes of the daemon and of the machine.

use std::fs;

use berth_tests::eventually;
use serde_json::{Value, json};

use crate::ready;

fn with_policy(image: &str, policy: &str, script: &str) -> Value {
    let (name, count) = policy.split_once(':').unwrap_or((policy, "0"));
    json!({
        "Image": image,
        "Cmd": ["sh", "-c", script],
        "HostConfig": {
            "RestartPolicy": { "Name": name, "MaximumRetryCount": count.parse::<i64>().unwrap() },
        },
    })
}

#[tokio::test]
async fn a_failure_is_tried_again_as_often_as_was_said() {
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("fails", with_policy(&image, "on-failure:2", "echo run; exit 3")).await;
    engine.start("fails").await;
    assert_eq!(engine.wait("fails").await, 3);
    let seen = engine.inspect("fails").await;
    assert_eq!((&seen["RestartCount"], &seen["State"]["Status"]), (&json!(2), &json!("exited")));
    let logs = engine.get("/containers/fails/logs?stdout=1").await;
    assert_eq!(logs.as_str().unwrap().matches("run").count(), 3);
    let events = engine.events_until("fails", "die", 3).await;
    assert_eq!(events, ["create", "start", "die", "start", "die", "start", "die"]);
    // A success is none, and a start by hand begins anew.
    engine.create("succeeds", with_policy(&image, "on-failure", "exit 0")).await;
    engine.start("succeeds").await;
    assert_eq!(engine.wait("succeeds").await, 0);
    engine.start("fails").await;
    assert_eq!(engine.wait("fails").await, 3);
    assert_eq!(engine.inspect("fails").await["RestartCount"], 2);
    engine.remove("fails").await;
    engine.remove("succeeds").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_is_stopped_by_hand_stays_until_the_daemon_starts() {
    let (machine, daemon, engine, image) = ready().await;
    for (name, policy) in [("always", "always"), ("unless", "unless-stopped")] {
        engine.create(name, with_policy(&image, policy, "exec sleep 1000")).await;
        engine.create(&format!("new-{name}"), with_policy(&image, policy, "true")).await;
        engine.start(name).await;
    }
    // Killed from within, a container comes again.
    let first = engine.inspect("always").await["State"]["Pid"].as_i64().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(first).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    engine.events_until("always", "start", 2).await;
    engine.post("/containers/always/kill", json!(null)).await;
    engine.post("/containers/unless/stop?t=0", json!(null)).await;
    assert_eq!(engine.inspect("always").await["State"]["Status"], "exited");
    assert_eq!(engine.inspect("unless").await["State"]["Status"], "exited");
    daemon.kill();
    let _daemon = machine.start().await;
    engine.events_until("always", "start", 1).await;
    assert_eq!(engine.inspect("always").await["State"]["Status"], "running");
    assert_eq!(engine.inspect("unless").await["State"]["Status"], "exited");
    for name in ["always", "unless"] {
        // Nobody has ever started these.
        assert_eq!(engine.inspect(&format!("new-{name}")).await["State"]["Status"], "created");
        engine.remove(name).await;
        engine.remove(&format!("new-{name}")).await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn policies_bring_containers_back_after_a_reboot_and_those_that_need_them_after_them() {
    let (mut machine, daemon, engine, image) = ready().await;
    engine.create("needed", with_policy(&image, "always", "exec sleep 1000")).await;
    let mut joined = with_policy(&image, "unless-stopped", "exec sleep 1000");
    joined["HostConfig"]["NetworkMode"] = json!("container:needed");
    engine.create("needs", joined).await;
    engine.create("plain", json!({ "Image": image, "Cmd": ["sleep", "1000"] })).await;
    for name in ["needed", "needs", "plain"] {
        engine.start(name).await;
    }
    machine.reboot(daemon);
    let _daemon = machine.start().await;
    engine.events_until("needs", "start", 1).await;
    for (name, status) in [("needed", "running"), ("needs", "running"), ("plain", "exited")] {
        assert_eq!(engine.inspect(name).await["State"]["Status"], status, "{name}");
        engine.remove(name).await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_container_between_two_runs_is_restarting_and_can_be_stopped_removed_and_taken_up() {
    let (machine, daemon, engine, image) = ready().await;
    let names = ["stopped", "removed", "taken"];
    for name in names {
        engine.create(name, with_policy(&image, "always", "exit 1")).await;
        engine.start(name).await;
        // By now the delay is long enough to look: 100 ms doubled five times.
        engine.events_until(name, "die", 6).await;
        let state = engine.inspect(name).await["State"].clone();
        assert_eq!((&state["Status"], &state["Running"]), (&json!("restarting"), &json!(true)));
        let (status, answer) = engine.request("DELETE", &format!("/containers/{name}"), None).await;
        let why = format!(
            "cannot remove container \"{name}\": container is restarting: stop the container \
             before removing or force remove"
        );
        assert_eq!((status, &answer["message"]), (409, &json!(why)));
        match name {
            "stopped" => drop(engine.post("/containers/stopped/stop", json!(null)).await),
            "removed" => engine.remove("removed").await,
            _ => {}
        }
    }
    assert_eq!(engine.inspect("stopped").await["State"]["Status"], "exited");
    daemon.kill();
    let _daemon = machine.start().await;
    engine.events_until("taken", "start", 1).await;
    engine.remove("taken").await;
    engine.remove("stopped").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again() {
    let (machine, _daemon, engine, image) = ready().await;
    let source = machine.path("source");
    fs::create_dir(&source).unwrap();
    let mut body = with_policy(&image, "always", "sleep 0.2; exit 1");
    body["HostConfig"]["Mounts"] = json!([{ "Type": "bind", "Source": source, "Target": "/at" }]);
    engine.create("needs-source", body).await;
    engine.start("needs-source").await;
    fs::remove_dir(&source).unwrap();
    engine.events_until("needs-source", "die", 1).await;
    // Until what it lacks is there again.
    eventually("a start that fails", async || {
        engine.inspect("needs-source").await["State"]["Error"] != ""
    })
    .await;
    fs::create_dir(&source).unwrap();
    let before = engine.events_until("needs-source", "die", 1).await;
    let starts = before.iter().filter(|action| *action == "start").count();
    engine.events_until("needs-source", "start", starts + 1).await;
    engine.remove("needs-source").await;
    machine.assert_clean().await;
}

/// As compose, which looks when it hears of an end, and follows the log of each run.
#[tokio::test]
async fn who_hears_of_an_end_sees_it_and_followed_logs_end_with_it() {
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("c1", with_policy(&image, "no", "sleep 0.3; exit 3")).await;
    engine.start("c1").await;
    engine.events_until("c1", "die", 1).await;
    let state = engine.inspect("c1").await["State"].clone();
    assert_eq!((&state["Running"], &state["ExitCode"]), (&json!(false), &json!(3)));
    engine.remove("c1").await;

    engine.create("c2", with_policy(&image, "always", "echo line; sleep 0.5; exit 3")).await;
    engine.start("c2").await;
    let log = engine.get("/containers/c2/logs?stdout=1&follow=1").await;
    assert_eq!(log.as_str().unwrap().matches("line").count(), 1, "{log}");
    engine.remove("c2").await;
    machine.assert_clean().await;
}
