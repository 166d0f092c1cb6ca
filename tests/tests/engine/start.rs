//! How a program begins: with what terminal, and what is said if it cannot.

use serde_json::json;

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
