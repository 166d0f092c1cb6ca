//! `docker run` in its forms, and `docker attach`.

use std::{io::Write, process::Stdio};

use berth_tests::{Capability, finish, skip_without};
use serde_json::json;

use crate::ready;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn run_shows_all_output_and_passes_the_exit_code_on() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let script = "echo out; echo err >&2; exit 4";
    let output = machine.docker(&["run", "--rm", &image, "sh", "-c", script]);
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(4), "out\n".to_owned(), "err\n".to_owned())
    );
    // More than any pipe holds.
    let output = machine.docker(&["run", "--rm", &image, "head", "-c", "20000000", "/dev/zero"]);
    assert_eq!(output.stdout.len(), 20_000_000);
    assert_eq!(engine.get("/containers/json?all=1").await, json!([]));
    machine.assert_clean().await;
}

#[tokio::test]
async fn input_goes_in_and_its_end_with_it() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let mut child = machine
        .docker_command(&["run", "--rm", "-i", &image, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = vec![b'y'; 3 << 20];
    let mut stdin = child.stdin.take().unwrap();
    // In a thread: what comes back has to be read meanwhile.
    let sent = input.clone();
    let sending = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = finish(child);
    sending.join().unwrap();
    assert!(output.status.success() && output.stdout == input, "{}", output.stdout.len());
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_terminal_is_left_by_its_keys_and_its_program_stays() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let run = format!("run -it --name c1 {image} sh -c 'tty; cat'");
    let output = machine.on_terminal(&run, b"hello\n\x10\x11");
    let shown = text(&output.stdout);
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert_eq!(engine.inspect("c1").await["State"]["Running"], true);
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn attach_replays_the_log_and_refuses_what_dockerd_refuses() {
    let (machine, _daemon, engine, image) = ready().await;
    let script = "echo first; cat";
    let body = json!({ "Image": image, "Cmd": ["sh", "-c", script], "OpenStdin": true });
    engine.create("c1", body).await;
    engine.start("c1").await;
    let refused = engine.request("POST", "/containers/c1/attach?detachKeys=nope", None).await;
    assert_eq!(refused, (400, json!("Invalid detach keys (nope) provided\r\n")));
    let missing = engine.request("POST", "/containers/x/attach?stream=1", None).await;
    assert_eq!(missing, (404, json!("No such container: x\r\n")));
    loop {
        // Without an upgrade the answer is the stream.
        let (status, replay) =
            engine.request("POST", "/containers/c1/attach?logs=1&stdout=1", None).await;
        assert_eq!(status, 200);
        if replay == json!("\u{1}\0\0\0\0\0\0\u{6}first\n") {
            break;
        }
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}
