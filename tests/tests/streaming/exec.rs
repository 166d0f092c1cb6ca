//! Exec: streams, terminals, exit codes, and commands whose client is gone.

use std::{
    thread,
    time::{Duration, Instant},
};

use berth_tests::{SpdyClient, eventually};

use crate::session::{ending, eventually_now, exec, resident, running, sleeper};

#[tokio::test]
async fn a_command_has_its_streams_and_its_exit_code() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    let script = "cat; echo to-stderr >&2; exit 7";
    let url = exec(&cri, &id, &["sh", "-c", script], "ioe").await;
    machine.in_network(|| {
        // Streams in another order than kubectl opens them in.
        let mut client = SpdyClient::open_all(&url, &["stdout", "stdin", "error", "stderr"]);
        client.send(3, b"hello ");
        client.send(3, b"world");
        client.finish(3);
        assert_eq!(ending(&client.read_all(5)), "7");
        assert_eq!(
            (client.text(1).as_str(), client.text(7).as_str()),
            ("hello world", "to-stderr\n")
        );
        assert!([1, 5, 7].iter().all(|stream| client.ended.contains(stream)), "{:?}", client.ended);
    });
    // Without stdin the command reads nothing. A child in the background that keeps the output open
    // does not keep the session open.
    let url = exec(&cri, &id, &["sh", "-c", "cat; sleep 1000 & echo done"], "o").await;
    machine.in_network(|| {
        let begun = Instant::now();
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        assert_eq!(ending(&client.read_all(1)), 0);
        assert_eq!(client.text(3), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
    // All of a long output arrives, although the process is gone by the time it is read.
    let url = exec(&cri, &id, &["head", "-c", "30000000", "/dev/zero"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        assert_eq!(ending(&client.read_all(1)), 0);
        assert_eq!(client.came[&3].len(), 30_000_000);
    });
    let url = exec(&cri, &id, &["no-such-program"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        let said = client.read_all(1);
        assert!(ending(&said) == "InternalError" && said.contains("no-such-program"), "{said}");
    });
    // Protocols before v4 report the exit code as text on the error stream.
    let url = exec(&cri, &id, &["false"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "v2.channel.k8s.io");
        client.open(&[("streamtype", "error")]);
        client.open(&[("streamtype", "stdout")]);
        assert_eq!(client.read_all(1), "command terminated with non-zero exit code: exit status 1");
    });
}

#[tokio::test]
async fn a_terminal_is_resized_interrupted_and_left() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    let url = exec(&cri, &id, &["sh"], "iot").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdin", "stdout", "resize"]);
        client.send(7, br#"{"Width":100,"Height":40}{"Width":"#);
        client.send(7, br#"132,"Height":43}"#);
        client.read_until(|client| client.text(5).contains("# ")).unwrap();
        let mut said = 0;
        // Resizing and typing are separate streams without an order between them, so the size is
        // asked for until it is right.
        while !client.text(5).contains("43 132") {
            client.send(3, b"stty size; tty; echo $TERM\n");
            client.read_until(|client| client.text(5)[said..].contains("xterm")).unwrap();
            said = client.text(5).len();
        }
        assert!(client.text(5).contains("/dev/pts/"), "{}", client.text(5));
        client.send(3, b"sleep 5432\n");
        eventually_now("the command", || running(&machine, "sleep 5432") == 1);
        client.send(3, b"\x03");
        client.send(3, b"echo after=$?\n");
        client.read_until(|client| client.text(5).contains("after=130")).unwrap();
        // Ctrl-D.
        client.send(3, b"exit 3\n\x04");
        assert_eq!(ending(&client.read_all(1)), "3");
    });
}

#[tokio::test]
async fn an_exec_whose_client_vanished_is_killed_with_its_children() {
    let (machine, daemon, cri, _, id) = sleeper().await;
    let url =
        exec(&cri, &id, &["sh", "-c", "setsid sleep 4321 & echo started; exec sleep 4321"], "o")
            .await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        client.read_until(|client| client.text(3).contains("started")).unwrap();
    });
    eventually("the end of both", async || running(&machine, "sleep 4321") == 0).await;
    // A client that does not read: its command's output is not collected in memory, and other
    // clients are served.
    let url = exec(&cri, &id, &["cat", "/dev/zero"], "o").await;
    let before = resident(&daemon);
    let rude = machine.in_network(|| {
        let client = SpdyClient::open_all(&url, &["error", "stdout"]);
        // Long enough for `cat` to fill every buffer on the way. There is nothing to wait for: the
        // point is that nothing happens.
        thread::park_timeout(Duration::from_secs(2));
        client
    });
    let other = exec(&cri, &id, &["echo", "fine"], "o").await;
    machine.in_network(|| {
        assert_eq!(SpdyClient::open_all(&other, &["error", "stdout"]).read_all(3), "fine\n")
    });
    assert!(resident(&daemon) < before + 4096, "{before} KiB, and then {}", resident(&daemon));
    assert_eq!(running(&machine, "cat /dev/zero"), 1);
    drop(rude);
    eventually("its end", async || running(&machine, "cat /dev/zero") == 0).await;
}
