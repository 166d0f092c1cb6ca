//! Records that are damaged: whose they are is still listed, goes on running, and can be removed, and
//! nobody else is disturbed.

use std::fs;

use berth_tests::{Daemon, Damage, Engine, Machine};
use serde_json::{Value, json};

use crate::ready;

/// What a container does when its record is damaged.
const LIVES: [&str; 3] = ["created", "running", "exited"];

#[tokio::test]
async fn a_damaged_record_is_its_containers_trouble_alone() {
    let (machine, mut daemon, engine, image) = ready().await;
    make(&engine, "well", "running", &image).await;
    for damage in Damage::ALL {
        let mut ids = Vec::new();
        for life in LIVES {
            ids.push(make(&engine, life, life, &image).await);
        }
        daemon =
            damage_records(&machine, daemon, &ids, "container.json", |path| damage.put(path)).await;
        let log = daemon.log();
        assert_eq!(engine.inspect("well").await["State"]["Status"], "running");
        for (id, life) in ids.iter().zip(LIVES) {
            let what = format!("{life} {damage:?}");
            assert!(log.contains(&format!("{id}/container.json is damaged")), "{what}: {log}");
            let state = engine.inspect(id).await["State"].clone();
            assert_eq!(state["Status"], life, "{what}: {state}");
            assert_eq!(state["ExitCode"], if life == "exited" { 7 } else { 0 }, "{what}: {state}");
            let body = json!({ "RestartPolicy": { "Name": "always" } });
            let update =
                engine.request("POST", &format!("/containers/{id}/update"), Some(body)).await;
            let start = engine.request("POST", &format!("/containers/{id}/start"), None).await;
            let refused = if life == "running" { vec![update] } else { vec![update, start] };
            for (status, answer) in refused {
                let message = answer["message"].as_str().unwrap_or_default();
                assert!(
                    status >= 400 && message.contains("can only be removed"),
                    "{what}: {answer}"
                );
            }
            if life == "running" {
                let (status, answer) = engine.request("DELETE", "/volumes/running", None).await;
                assert_eq!(status, 409, "{what}: its volume is in use: {answer}");
            }
            engine.remove(id).await;
        }
    }
    engine.remove("well").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn without_the_record_of_its_state_a_container_starts_again() {
    let (machine, mut daemon, engine, image) = ready().await;
    for damage in Damage::ALL {
        let mut ids = Vec::new();
        for life in ["running", "exited"] {
            ids.push(make(&engine, life, life, &image).await);
        }
        daemon =
            damage_records(&machine, daemon, &ids, "state.json", |path| damage.put(path)).await;
        assert_eq!(engine.inspect("running").await["State"]["Status"], "running", "{damage:?}");
        let state = engine.inspect("exited").await["State"].clone();
        let why = state["Error"].as_str().unwrap_or_default();
        assert!(state["ExitCode"] == 137 && why.contains("damaged"), "{damage:?}: {state}");
        engine.start("exited").await;
        assert_eq!(engine.wait("exited").await, 7);
        for id in ids {
            engine.remove(&id).await;
        }
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_record_with_an_image_that_cannot_be_keeps_the_node_from_nothing() {
    let (machine, daemon, engine, image) = ready().await;
    let ids = [make(&engine, "exited", "exited", &image).await];
    let _daemon = damage_records(&machine, daemon, &ids, "container.json", |path| {
        let mut record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        record["image_id"] = json!("none");
        fs::write(path, record.to_string()).unwrap();
    })
    .await;
    assert_eq!(engine.inspect("exited").await["State"]["ExitCode"], 7);
    let (status, answer) = engine.request("POST", "/containers/exited/start", None).await;
    assert!(status >= 400 && answer["message"].as_str().unwrap().contains("none"), "{answer}");
    engine.remove("exited").await;
    machine.assert_clean().await;
}

/// Makes a container that leads this life.
async fn make(engine: &Engine, name: &str, life: &str, image: &str) -> String {
    let script = if life == "exited" { "exit 7" } else { "exec sleep 1000" };
    let host = json!({ "Binds": [format!("{life}:/volume")] });
    let body = json!({ "Image": image, "Cmd": ["sh", "-c", script], "HostConfig": host });
    let id = engine.create(name, body).await;
    if life != "created" {
        engine.start(name).await;
    }
    if life == "exited" {
        assert_eq!(engine.wait(name).await, 7);
    }
    id
}

/// Ends the daemon, damages a record of each container, and starts it again.
async fn damage_records(
    machine: &Machine,
    daemon: Daemon,
    ids: &[String],
    record: &str,
    damage: impl Fn(&std::path::Path),
) -> Daemon {
    daemon.kill();
    for id in ids {
        damage(&machine.path(&format!("root/engine/containers/{id}/{record}")));
    }
    machine.start().await
}
