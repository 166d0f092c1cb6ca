//! How a program begins: with what terminal, and what is said if it cannot.

use serde_json::{Value, json};

use crate::ready;

#[tokio::test]
async fn a_terminal_has_its_size_from_the_beginning() {
    let (machine, _daemon, engine, image) = ready().await;
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", "stty size"],
        "Tty": true,
        "HostConfig": { "ConsoleSize": [40, 100] },
    });
    engine.create("c1", body).await;
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    assert_eq!(engine.get("/containers/c1/logs?stdout=1").await, json!("40 100\r\n"));
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_executed_is_told_in_runcs_words_with_its_exit_code() {
    let (machine, _daemon, engine, image) = ready().await;
    for (program, code, why) in [
        ("nope", 127, "exec: \"nope\": executable file not found in $PATH"),
        ("", 127, "exec: \"\": executable file not found in $PATH"),
        ("/nope/x", 127, "exec: \"/nope/x\": stat /nope/x: no such file or directory"),
        ("/etc/passwd", 126, "exec: \"/etc/passwd\": permission denied"),
        ("/etc", 126, "exec: \"/etc\": is a directory: permission denied"),
    ] {
        engine.create("c1", json!({ "Image": image, "Cmd": [program] })).await;
        let message = format!(
            "failed to create task for container: failed to create shim task: OCI runtime create \
             failed: runc create failed: unable to start container process: error during \
             container init: {why}"
        );
        let answer = engine.request("POST", "/containers/c1/start", None).await;
        assert_eq!(answer, (400, json!({ "message": message })));
        let state = engine.inspect("c1").await["State"].clone();
        assert_eq!((&state["ExitCode"], &state["Error"]), (&json!(code), &json!(message)));
        engine.remove("c1").await;
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_unknown_user_or_group_is_told_and_its_container_is_removed_where_asked() {
    let (machine, _daemon, engine, image) = ready().await;
    for (user, why) in [
        ("nope", "unable to find user nope: no matching entries in passwd file"),
        ("0:nope", "unable to find group nope: no matching entries in group file"),
    ] {
        let body = json!({
            "Image": image, "Cmd": ["id"], "User": user, "HostConfig": { "AutoRemove": true },
        });
        engine.create("c1", body).await;
        let waiting = engine.post("/containers/c1/wait?condition=removed", Value::Null);
        let starting = engine.request("POST", "/containers/c1/start", None);
        let (waited, started) = tokio::join!(waiting, starting);
        assert_eq!(started, (500, json!({ "message": why })));
        // The error is that of the start. The CLI would print it twice.
        assert!(waited.get("Error").is_none(), "{waited}");
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_killed_or_stopped_is_named_as_the_client_named_it() {
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("c2", json!({ "Image": image, "Cmd": ["true"] })).await;
    for (path, status, message) in [
        ("nope/kill", 404, "cannot kill container: nope: No such container: nope"),
        ("c2/kill?signal=0", 400, "cannot kill container: c2: invalid signal: 0"),
        (
            "c2/kill?signal=999",
            400,
            "cannot kill container: c2: the linux daemon does not support signal 999",
        ),
        ("c2/stop?signal=NOPE", 500, "cannot stop container: c2: invalid signal: NOPE"),
    ] {
        let answer = engine.request("POST", &format!("/containers/{path}"), None).await;
        assert_eq!(answer, (status, json!({ "message": message })));
    }
    engine.remove("c2").await;
    machine.assert_clean().await;
}
