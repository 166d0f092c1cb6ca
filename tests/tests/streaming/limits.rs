//! Clients that break the protocol, how long the daemon waits for a client, and what sessions leave
//! behind.

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use berth_tests::{SpdyClient, eventually, upgrade};
use tonic::Code;

use crate::session::{
    descriptors, ending, eventually_now, exec, port_forward, resident, running, sleeper, threads,
    try_exec,
};

/// A way for a client to break the protocol.
type Rude = fn(&mut SpdyClient);

#[tokio::test]
async fn requests_that_are_wrong_are_refused() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    for (streams, command) in [("", &["true"][..]), ("oet", &["true"]), ("o", &[]), ("o", &[""])] {
        assert_eq!(
            try_exec(&cri, &id, command, streams).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{streams}"
        );
    }
    assert_eq!(try_exec(&cri, "nobody", &["true"], "o").await.unwrap_err().code(), Code::NotFound);
    let url = exec(&cri, &id, &["true"], "o").await;
    let other = exec(&cri, &id, &["echo", "fine"], "o").await;
    let spdy = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    machine.in_network(|| {
        let base = url.rsplit_once('/').unwrap().0;
        let refused = |url: &str, headers: &[(&str, &str)]| upgrade(url, headers).unwrap_err();
        assert_eq!(refused(&format!("{base}/00000000000000000000000000000000"), &spdy).status, 404);
        assert_eq!(refused(&url.replace("/exec/", "/attach/"), &spdy[..1]).status, 400);
        assert_eq!(refused(&url, &[]).status, 400);
        let wrong = refused(
            &url,
            &[
                spdy[0],
                spdy[1],
                ("X-Stream-Protocol-Version", "v9.channel.k8s.io, v8.channel.k8s.io"),
            ],
        );
        assert!(
            wrong.status == 403
                && wrong
                    .head
                    .to_lowercase()
                    .contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
            "{wrong:?}"
        );
        // The URL is used up, though the upgrade failed.
        assert_eq!(refused(&url, &spdy).status, 404);

        let mut client = SpdyClient::open_all(&other, &["error", "stdout"]);
        assert_eq!(client.read_all(3), "fine\n");
        assert_eq!(refused(&other, &spdy).status, 404, "a URL is good once");
    });
    let mut last = Ok(String::new());
    for _ in 0..=1000 {
        last = try_exec(&cri, &id, &["true"], "o").await;
    }
    assert_eq!(last.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn frames_that_are_wrong_cost_their_client_the_connection_and_nobody_else() {
    let (machine, daemon, cri, _, id) = sleeper().await;
    let before = descriptors(&daemon);
    let garbage: [(&str, Rude); 6] = [
        ("garbage", |client| drop(client.socket.write_all(&[0x80; 1000]))),
        ("a version of before", |client| {
            drop(client.socket.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0]))
        }),
        ("a long control frame", |client| {
            drop(client.socket.write_all(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]))
        }),
        ("headers that are not compressed", |client| {
            client.control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9])
        }),
        ("a stream that was not asked for", |client| {
            client.open(&[("streamtype", "stderr")]);
        }),
        ("two streams of a type", |client| {
            client.open(&[("streamtype", "error")]);
            client.open(&[("streamtype", "error")]);
        }),
    ];
    for (what, send) in garbage {
        let url = exec(&cri, &id, &["true"], "o").await;
        machine.in_network(|| {
            let mut client = SpdyClient::connect(&url, "v4.channel.k8s.io");
            send(&mut client);
            let begun = Instant::now();
            client.read_all(1);
            assert!(
                begun.elapsed() < Duration::from_secs(8),
                "{what}: the server does not hang up"
            );
        });
    }
    // Headers that inflate to many times their size.
    let url = exec(&cri, &id, &["true"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "v4.channel.k8s.io");
        let block: Vec<u8> = (0..30).flat_map(|_| client.stored(&[0; 60_000])).collect();
        client.control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &block[..60_000]].concat());
        client.control(8, &[&[0, 0, 0, 1][..], &block[..60_000]].concat());
        client.read_all(1);
    });
    // A thousand streams where two were asked for: they are refused, and the client is still
    // served.
    let url = exec(&cri, &id, &["sleep", "8765"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        let more: Vec<u32> = (0..1000).map(|_| client.open(&[("streamtype", "stdin")])).collect();
        client
            .read_until(|client| more.iter().all(|stream| client.ended.contains(stream)))
            .unwrap();
        client.control(6, &7_u32.to_be_bytes());
        client.read_until(|client| client.came.contains_key(&0)).unwrap();
        eventually_now("the command", || running(&machine, "sleep 8765") == 1);
    });
    eventually("its end", async || running(&machine, "sleep 8765") == 0).await;
    eventually("the last of them", async || descriptors(&daemon) <= before).await;
    assert_eq!(cri.sh(&id, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn streams_that_never_come_are_waited_for_30_s() {
    let (machine, daemon, cri, sandbox, id) = sleeper().await;
    let before = descriptors(&daemon);
    let urls =
        (exec(&cri, &id, &["sleep", "7654"], "oe").await, port_forward(&cri, &sandbox).await);
    machine.in_network(|| {
        let begun = Instant::now();
        let mut command = SpdyClient::open_all(&urls.0, &["error", "stdout"]);
        let mut forward = SpdyClient::connect(&urls.1, "portforward.k8s.io");
        let lonely = forward.open(&[("port", "80"), ("requestid", "1"), ("streamtype", "error")]);
        for client in [&command, &forward] {
            client.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        command.read_until(|_| false).unwrap();
        assert!((28..45).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        forward.read_until(|client| client.ended.contains(&lonely)).unwrap();
        assert!((28..45).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert!(forward.text(lonely).contains("no data stream"), "{}", forward.text(lonely));
        // The connection still serves other requests.
        let twice = [0, 1]
            .map(|_| forward.open(&[("port", "80"), ("requestid", "2"), ("streamtype", "error")]));
        forward.read_until(|client| client.ended.contains(&twice[1])).unwrap();
        assert!(!forward.ended.contains(&twice[0]));
    });
    assert_eq!(running(&machine, "sleep 7654"), 0, "it never began");
    eventually("the last of them", async || descriptors(&daemon) <= before).await;
}

#[tokio::test]
async fn sessions_leave_nothing_behind() {
    let (machine, daemon, cri, _, id) = sleeper().await;
    let session = async |streams: &str| {
        let url = exec(&cri, &id, &["echo", "x"], streams).await;
        let types: &[&str] = if streams.contains('t') {
            &["error", "stdout", "resize"]
        } else {
            &["error", "stdout", "stderr"]
        };
        machine
            .in_network(|| assert!(SpdyClient::open_all(&url, types).read_all(3).starts_with('x')));
    };
    // The first sessions make what stays: threads and buffers.
    for _ in 0..200 {
        session("oe").await;
        session("ot").await;
    }
    let before = (descriptors(&daemon), threads(&daemon), resident(&daemon));
    // BERTH_TEST_SESSIONS=5000 makes it ten thousand sessions.
    let pairs = std::env::var("BERTH_TEST_SESSIONS").map_or(500, |count| count.parse().unwrap());
    for _ in 0..pairs {
        session("oe").await;
        session("ot").await;
    }
    eventually("as many descriptors as before", async || descriptors(&daemon) <= before.0).await;
    let after = (descriptors(&daemon), threads(&daemon), resident(&daemon));
    assert!(
        after.1 <= before.1 + 1 && after.2 <= before.2 + 2048,
        "{before:?}, and then {after:?}"
    );
    assert_eq!(
        fs::read_dir(machine.path(&format!("root/containers/{id}/exec")))
            .into_iter()
            .flatten()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_hundred_sessions_at_once_hold() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    let mut urls = Vec::new();
    for _ in 0..100 {
        urls.push(exec(&cri, &id, &["cat"], "io").await);
    }
    machine.in_network(|| {
        let mut clients: Vec<SpdyClient> = urls
            .iter()
            .map(|url| SpdyClient::open_all(url, &["error", "stdin", "stdout"]))
            .collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(3, format!("{number}\n").as_bytes());
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.finish(3);
            assert_eq!(ending(&client.read_all(1)), 0);
            assert_eq!(client.text(5), format!("{number}\n"));
        }
    });
}
