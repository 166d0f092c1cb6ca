//! Health checks.

use serde_json::{Value, json};

use crate::ready;

const MILLISECOND: u64 = 1_000_000;

fn probed(image: &str, test: &str, more: Value) -> Value {
    let mut check = json!({
        "Test": ["CMD-SHELL", test],
        "Interval": 50 * MILLISECOND,
        "Retries": 2,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        check[key] = value.clone();
    }
    json!({ "Image": image, "Cmd": ["sleep", "1000"], "Healthcheck": check })
}

#[tokio::test]
async fn a_container_is_starting_unhealthy_and_healthy_as_its_probes_say() {
    let (machine, daemon, engine, image) = ready().await;
    let test = "echo looks; test -e /ok";
    engine.create("probed", probed(&image, test, json!({}))).await;
    assert!(engine.inspect("probed").await["State"].get("Health").is_none());
    engine.start("probed").await;
    let seen = engine.events_until("probed", "health_status: unhealthy", 1).await;
    let probe = [&format!("exec_create: /bin/sh -c {test}"), "exec_die"];
    assert!(probe.iter().all(|action| seen.iter().any(|seen| seen == action)), "{seen:?}");
    let health = engine.inspect("probed").await["State"]["Health"].clone();
    assert_eq!(health["Status"], "unhealthy");
    assert!(health["FailingStreak"].as_i64().unwrap() >= 2, "{health}");
    assert_eq!(health["Log"][0]["ExitCode"], 1);
    assert_eq!(health["Log"][0]["Output"], "looks\n");
    let exec =
        engine.post("/containers/probed/exec", json!({ "Cmd": ["touch", "/ok"] })).await["Id"]
            .clone();
    let start = format!("/exec/{}/start", exec.as_str().unwrap());
    engine.post(&start, json!({ "Detach": true })).await;
    engine.events_until("probed", "health_status: healthy", 1).await;
    for (filter, count) in [("healthy", 1), ("unhealthy", 0), ("none", 0)] {
        let path = format!("/containers/json?filters={{\"health\":[\"{filter}\"]}}");
        let list = engine.get(&path).await;
        assert_eq!(list.as_array().unwrap().len(), count, "{filter}");
        if count == 1 {
            assert!(list[0]["Status"].as_str().unwrap().ends_with("(healthy)"), "{list}");
        }
    }
    // The next daemon knows it, and probes on.
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(engine.inspect("probed").await["State"]["Health"]["Status"], "healthy");
    engine.events_until("probed", "exec_die", 1).await;
    engine.remove("probed").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_probe_that_hangs_or_cannot_be_run_has_failed() {
    let (machine, _daemon, engine, image) = ready().await;
    let hangs = json!({ "Timeout": 100 * MILLISECOND });
    engine.create("hangs", probed(&image, "echo before; sleep 1000", hangs)).await;
    let absent = json!({ "Test": ["CMD", "/absent"] });
    engine.create("absent", probed(&image, "", absent)).await;
    for name in ["hangs", "absent"] {
        engine.start(name).await;
        engine.events_until(name, "health_status: unhealthy", 1).await;
    }
    let result = engine.inspect("hangs").await["State"]["Health"]["Log"][0].clone();
    let text = "Health check exceeded timeout (100ms): before\n";
    assert_eq!((&result["ExitCode"], &result["Output"]), (&json!(-1), &json!(text)));
    let result = engine.inspect("absent").await["State"]["Health"]["Log"][0].clone();
    assert_eq!(result["ExitCode"], -1);
    assert!(result["Output"].as_str().unwrap().contains("/absent"), "{result}");
    engine.remove("hangs").await;
    engine.remove("absent").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_start_period_forgives_and_what_is_paused_or_has_ended_is_not_probed() {
    let (machine, _daemon, engine, image) = ready().await;
    let period =
        json!({ "StartPeriod": 1_000_000 * MILLISECOND, "StartInterval": 20 * MILLISECOND });
    engine.create("forgiven", probed(&image, "exit 1", period)).await;
    engine.start("forgiven").await;
    engine.events_until("forgiven", "exec_die", 4).await;
    let health = engine.inspect("forgiven").await["State"]["Health"].clone();
    assert_eq!((&health["Status"], &health["FailingStreak"]), (&json!("starting"), &json!(0)));
    engine.post("/containers/forgiven/pause", json!(null)).await;
    assert_eq!(engine.inspect("forgiven").await["State"]["Health"]["Status"], "unhealthy");
    engine.post("/containers/forgiven/unpause", json!(null)).await;
    let seen = engine.events_until("forgiven", "unpause", 1).await;
    let probes = seen.iter().filter(|action| *action == "exec_die").count();
    engine.events_until("forgiven", "exec_die", probes + 1).await;
    engine.post("/containers/forgiven/stop?t=0", json!(null)).await;
    assert_eq!(engine.inspect("forgiven").await["State"]["Health"]["Status"], "unhealthy");
    // Results are kept over a restart; the state begins anew.
    engine.start("forgiven").await;
    let health = engine.inspect("forgiven").await["State"]["Health"].clone();
    assert_eq!(health["Status"], "starting");
    assert!(!health["Log"].as_array().unwrap().is_empty());
    engine.remove("forgiven").await;
    machine.assert_clean().await;
}
