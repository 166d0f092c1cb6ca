//! Create, start, the end, and removal.

use berth_tests::{Image, busybox};
use serde_json::json;

use crate::{ready, ready_with_cri};

#[tokio::test]
async fn a_container_runs_ends_runs_again_and_keeps_its_files() {
    let (machine, daemon, engine, image) = ready().await;
    let script = "echo run >> /kept; exit $(wc -l < /kept)";
    let id = engine.create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", script] })).await;
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "created");
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 1);
    engine.start(&id[..12]).await;
    assert_eq!(engine.wait(&id).await, 2);
    let state = engine.inspect("c1").await["State"].clone();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(2)));
    // Another daemon finds it as it was.
    daemon.kill();
    let _daemon = machine.start().await;
    assert_eq!(engine.inspect("c1").await["State"], state);
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 3);
    engine.remove("c1").await;
    let (status, _) = engine.request("GET", "/containers/c1/json", None).await;
    assert_eq!(status, 404);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_container_outlives_its_daemon_and_its_end_is_known_to_the_next() {
    let (machine, daemon, engine, image) = ready().await;
    engine.create("runs", json!({ "Image": image, "Cmd": ["sleep", "1000"] })).await;
    engine
        .create("ends", json!({ "Image": image, "Cmd": ["sh", "-c", "sleep 0.5; exit 7"] }))
        .await;
    engine.start("runs").await;
    engine.start("ends").await;
    let pid = engine.inspect("runs").await["State"]["Pid"].clone();
    daemon.kill();
    let _daemon = machine.start().await;
    let state = engine.inspect("runs").await["State"].clone();
    assert_eq!((&state["Running"], &state["Pid"]), (&json!(true), &pid));
    assert_eq!(engine.wait("ends").await, 7);
    engine.post("/containers/runs/stop?t=0", json!(null)).await;
    assert_eq!(engine.wait("runs").await, 137);
    engine.remove("runs").await;
    engine.remove("ends").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn neither_edge_shows_what_is_of_the_other() {
    let (machine, _daemon, engine, cri, image) = ready_with_cri().await;
    let sandbox = cri.run_pod(berth_tests::pod(&machine, "p")).await.unwrap();
    engine.create("c1", json!({ "Image": image, "Cmd": ["sleep", "1000"] })).await;
    engine.start("c1").await;
    assert_eq!(cri.pods(Default::default()).await.len(), 1);
    assert_eq!(engine.get("/containers/json?all=1").await.as_array().unwrap().len(), 1);
    cri.remove_pod(&sandbox).await.unwrap();
    assert_eq!(engine.inspect("c1").await["State"]["Running"], true);
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn volumes_that_an_image_declares_keep_their_files_from_run_to_run() {
    let (machine, daemon, engine, _image) = ready().await;
    let layer = busybox().directory("data", 0o751).file("data/of-image", b"it").bytes();
    let config = json!({ "Volumes": { "/data": {}, "/fresh": {} } });
    let image = Image::docker(&[(layer.clone(), layer)], &config);
    let image = daemon.cri().pull_image(&machine, image).await;
    let script = "echo run | tee -a /data/kept /fresh/kept > /dev/null; cat /data/of-image; rm \
                  -f /data/of-image; cat /data/kept /fresh/kept; touch /x 2>&1";
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", script],
        "HostConfig": { "ReadonlyRootfs": true },
    });
    engine.create("keeps", body).await;
    for _ in 0..2 {
        engine.start("keeps").await;
        engine.wait("keeps").await;
    }
    let logs = engine.get("/containers/keeps/logs?stdout=1&tail=all").await;
    let logs = logs.as_str().unwrap();
    // What the image has there is taken over once.
    assert_eq!(logs.matches("it").count(), 1, "{logs}");
    assert_eq!(logs.matches("run").count(), 2 + 4, "{logs}");
    assert_eq!(logs.matches("Read-only").count(), 2, "{logs}");
    engine.remove("keeps").await;
    machine.assert_clean().await;
}
