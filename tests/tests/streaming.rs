//! Exec, Attach and PortForward by a client of our own, which can be rude; kubectl's own code is in crictl and critest.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Cri, Daemon, Machine, SpdyClient, container, eventually, pod, ready, upgrade};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tonic::Code;

/// Which streams are wanted: `i` stdin, `o` stdout, `e` stderr, `t` a terminal.
async fn exec(cri: &Cri, id: &str, command: &[&str], streams: &str) -> String {
    try_exec(cri, id, command, streams).await.unwrap()
}

async fn try_exec(cri: &Cri, id: &str, command: &[&str], streams: &str) -> Result<String, tonic::Status> {
    let [stdin, stdout, stderr, tty] = ['i', 'o', 'e', 't'].map(|stream| streams.contains(stream));
    let cmd = command.iter().map(|word| (*word).to_owned()).collect();
    let request = v1::ExecRequest { container_id: id.to_owned(), cmd, tty, stdin, stdout, stderr };
    Ok(cri.runtime.clone().exec(request).await?.into_inner().url)
}

async fn attach(cri: &Cri, id: &str, streams: &str) -> String {
    let [stdin, stdout, stderr, tty] = ['i', 'o', 'e', 't'].map(|stream| streams.contains(stream));
    let request = v1::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
    cri.runtime.clone().attach(request).await.unwrap().into_inner().url
}

async fn port_forward(cri: &Cri, sandbox: &str) -> String {
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: Vec::new() };
    cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url
}

/// A machine with one container that sleeps.
async fn sleeper() -> (Machine, Daemon, Cri, String, String) {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 100000")).await.unwrap();
    (machine, daemon, cri, sandbox, id)
}

/// A machine with a pod that answers on its port 80 what it is told.
async fn echo() -> (Machine, Daemon, Cri, String) {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec nc -ll -p 80 -e cat")).await.unwrap();
    eventually("the server", async || cri.sh(&id, "cat /proc/net/tcp /proc/net/tcp6").await.contains(":0050 ")).await;
    (machine, daemon, cri, sandbox)
}

/// The exit code of a Status, or its reason.
fn ending(text: &str) -> Value {
    let status: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    match status["status"].as_str() {
        Some("Success") => json!(0),
        _ if status["reason"] == "NonZeroExitCode" => status["details"]["causes"][0]["message"].clone(),
        _ => status["reason"].clone(),
    }
}

/// How many processes have this command line.
fn running(command: &str) -> usize {
    let wanted = command.replace(' ', "\0") + "\0";
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes())).count()
}

/// As `eventually`, where nothing can be awaited.
fn eventually_now(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::yield_now();
    }
}

/// Files that a process has open, and its memory in KiB.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}

#[tokio::test]
async fn a_command_has_its_streams_and_its_exit_code() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    let script = "cat; echo to-stderr >&2; exit 7";
    let url = exec(&cri, &id, &["sh", "-c", script], "ioe").await;
    machine.in_network(|| {
        // In another order than kubectl's.
        let mut client = SpdyClient::open_all(&url, &["stdout", "stdin", "error", "stderr"]);
        client.send(3, b"hello ");
        client.send(3, b"world");
        client.finish(3);
        assert_eq!(ending(&client.read_all(5)), "7");
        assert_eq!((client.text(1).as_str(), client.text(7).as_str()), ("hello world", "to-stderr\n"));
        assert!([1, 5, 7].iter().all(|stream| client.ended.contains(stream)), "{:?}", client.ended);
    });
    // Without stdin there is nothing to read; a daemonised child that holds the output holds nobody up.
    let url = exec(&cri, &id, &["sh", "-c", "cat; sleep 1000 & echo done"], "o").await;
    machine.in_network(|| {
        let begun = Instant::now();
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        assert_eq!(ending(&client.read_all(1)), 0);
        assert_eq!(client.text(3), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
    // All of a long output, although the process is gone by the time it is read.
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
    // As clients of before v4 have it: words.
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
        // The size is not in the order of what is typed.
        while !client.text(5).contains("43 132") {
            client.send(3, b"stty size; tty; echo $TERM\n");
            client.read_until(|client| client.text(5)[said..].contains("xterm")).unwrap();
            said = client.text(5).len();
        }
        assert!(client.text(5).contains("/dev/pts/"), "{}", client.text(5));
        client.send(3, b"sleep 5432\n");
        eventually_now("the command", || running("sleep 5432") == 1);
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
    let url = exec(&cri, &id, &["sh", "-c", "setsid sleep 4321 & echo started; exec sleep 4321"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        client.read_until(|client| client.text(3).contains("started")).unwrap();
    });
    eventually("the end of both", async || running("sleep 4321") == 0).await;
    // One that does not read does not keep its command's output in memory, nor anybody else from theirs.
    let url = exec(&cri, &id, &["cat", "/dev/zero"], "o").await;
    let before = resident(&daemon);
    let rude = machine.in_network(|| {
        let client = SpdyClient::open_all(&url, &["error", "stdout"]);
        thread::park_timeout(Duration::from_secs(2));
        client
    });
    let other = exec(&cri, &id, &["echo", "fine"], "o").await;
    machine.in_network(|| assert_eq!(SpdyClient::open_all(&other, &["error", "stdout"]).read_all(3), "fine\n"));
    assert!(resident(&daemon) < before + 4096, "{before} KiB, and then {}", resident(&daemon));
    assert_eq!(running("cat /dev/zero"), 1);
    drop(rude);
    eventually("its end", async || running("cat /dev/zero") == 0).await;
}

#[tokio::test]
async fn several_clients_are_attached_to_one_process() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config = container("c", &image, "while read line; do echo got $line; echo err >&2; done; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let id = cri.run(&sandbox, config).await.unwrap();
    let (one, two) = (attach(&cri, &id, "ioe").await, attach(&cri, &id, "o").await);
    machine.in_network(|| {
        let mut watcher = SpdyClient::open_all(&two, &["error", "stdout"]);
        let mut client = SpdyClient::open_all(&one, &["error", "stdin", "stdout", "stderr"]);
        // Both are attached once both have heard the same.
        while !(watcher.text(3).contains("got") && client.text(5).contains("got")) {
            client.send(3, b"hello\n");
            client.read_until(|client| client.text(5).ends_with('\n')).unwrap();
            watcher.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = watcher.read_until(|watcher| watcher.text(3).contains("got hello"));
        }
        watcher.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // stdin_once: the end of the first client's input is that of the process'.
        client.finish(3);
        assert_eq!(ending(&client.read_all(1)), 0);
        assert!(client.text(5).ends_with("end\n") && client.text(7).contains("err"), "{client:?}");
        assert!(watcher.read_all(3).ends_with("end\n"));
        assert_eq!(ending(&watcher.text(1)), 0);
    });
    assert_eq!(cri.exited(&id).await.exit_code, 0);
}

#[tokio::test]
async fn ports_of_a_pod_are_forwarded() {
    let (machine, _daemon, cri, sandbox) = echo().await;
    // One that listens on IPv6 only.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let status = cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
    let netns = info["netNamespace"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let six = machine.in_netns(&netns, || TcpListener::bind("[::1]:81").unwrap());
    thread::spawn(move || six.accept().unwrap().0.write_all(b"six\n").unwrap());
    let url = port_forward(&cri, &sandbox).await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        let pair = |client: &mut SpdyClient, port: &str, request: &str| {
            let headers = |kind| {
                [("port", port.to_owned()), ("requestid", request.to_owned()), ("streamtype", String::from(kind))]
            };
            let mut open = |kind| {
                let headers = headers(kind);
                client.open(&headers.each_ref().map(|(name, value)| (*name, value.as_str())))
            };
            (open("error"), open("data"))
        };
        let (_, first) = pair(&mut client, "80", "1");
        let (_, second) = pair(&mut client, "80", "2");
        let (error, nobody) = pair(&mut client, "9", "3");
        let (_, six) = pair(&mut client, "81", "4");
        let refused = client.open(&[("port", "80"), ("streamtype", "wrong")]);
        let much: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        client.send(first, b"one");
        for piece in much.chunks(30_000) {
            client.send(second, piece);
        }
        client.finish(first);
        client.finish(second);
        let wanted = [first, second, error, nobody, six, refused];
        client.read_until(|client| wanted.iter().all(|stream| client.ended.contains(stream))).unwrap();
        assert_eq!((client.text(first).as_str(), client.text(six).as_str()), ("one", "six\n"));
        assert!(client.came[&second] == much, "{} bytes came back", client.came[&second].len());
        assert!(
            client.text(error).contains("port 9 of the pod") && client.text(error).contains("refused"),
            "{}",
            client.text(error)
        );
        // A ping is answered.
        client.control(6, &7_u32.to_be_bytes());
        client.read_until(|client| client.came.contains_key(&0)).unwrap();
        assert_eq!(client.came[&0], 7_u32.to_be_bytes());
    });

    // Of a pod with the host's network.
    let mut config = pod(&machine, "host");
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options);
    let host = cri.run_pod(config).await.unwrap();
    let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port().to_string();
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"from the host").unwrap());
    let url = port_forward(&cri, &host).await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "portforward.k8s.io");
        // Without a request's id, as clients of before.
        client.open(&[("port", &port), ("streamtype", "error")]);
        let data = client.open(&[("port", &port), ("streamtype", "data")]);
        client.read_until(|client| client.ended.contains(&data)).unwrap();
        assert_eq!(client.text(data), "from the host");
    });
    cri.stop_pod(&sandbox).await.unwrap();
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: Vec::new() };
    assert_eq!(cri.runtime.clone().port_forward(request).await.unwrap_err().code(), Code::FailedPrecondition);
}

/// What a client does that it must not.
type Rude = fn(&mut SpdyClient);

#[tokio::test]
async fn what_is_wrong_is_refused_and_disturbs_nobody() {
    let (machine, daemon, cri, _, id) = sleeper().await;
    for (streams, command) in [("", &["true"][..]), ("oet", &["true"]), ("o", &[]), ("o", &[""])] {
        assert_eq!(try_exec(&cri, &id, command, streams).await.unwrap_err().code(), Code::InvalidArgument, "{streams}");
    }
    assert_eq!(try_exec(&cri, "nobody", &["true"], "o").await.unwrap_err().code(), Code::NotFound);
    let url = exec(&cri, &id, &["true"], "o").await;
    let other = exec(&cri, &id, &["echo", "fine"], "o").await;
    let spdy = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v4.channel.k8s.io")];
    machine.in_network(|| {
        let base = url.rsplit_once('/').unwrap().0;
        let refused = |url: &str, headers: &[(&str, &str)]| upgrade(url, headers).unwrap_err();
        assert_eq!(refused(&format!("{base}/00000000000000000000000000000000"), &spdy).status, 404);
        assert_eq!(refused(&url.replace("/exec/", "/attach/"), &spdy[..1]).status, 400);
        assert_eq!(refused(&url, &[]).status, 400);
        let wrong =
            refused(&url, &[spdy[0], spdy[1], ("X-Stream-Protocol-Version", "v9.channel.k8s.io, v8.channel.k8s.io")]);
        assert!(
            wrong.status == 403
                && wrong.head.to_lowercase().contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
            "{wrong:?}"
        );
        // Used, if in vain.
        assert_eq!(refused(&url, &spdy).status, 404);

        let mut client = SpdyClient::open_all(&other, &["error", "stdout"]);
        assert_eq!(client.read_all(3), "fine\n");
        assert_eq!(refused(&other, &spdy).status, 404, "a URL is good once");
    });
    let before = descriptors(&daemon);
    let garbage: [(&str, Rude); 6] = [
        ("garbage", |client| drop(client.socket.write_all(&[0x80; 1000]))),
        ("a version of before", |client| drop(client.socket.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0]))),
        ("a long control frame", |client| drop(client.socket.write_all(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]))),
        ("headers that are not compressed", |client| client.control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9])),
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
            assert!(begun.elapsed() < Duration::from_secs(8), "{what}: the server does not hang up");
        });
    }
    // Headers that inflate to much more than they are.
    let url = exec(&cri, &id, &["true"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::connect(&url, "v4.channel.k8s.io");
        let block: Vec<u8> = (0..30).flat_map(|_| client.stored(&[0; 60_000])).collect();
        client.control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &block[..60_000]].concat());
        client.control(8, &[&[0, 0, 0, 1][..], &block[..60_000]].concat());
        client.read_all(1);
    });
    // A thousand streams where two were asked for: refused, and the client is still heard.
    let url = exec(&cri, &id, &["sleep", "8765"], "o").await;
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdout"]);
        let more: Vec<u32> = (0..1000).map(|_| client.open(&[("streamtype", "stdin")])).collect();
        client.read_until(|client| more.iter().all(|stream| client.ended.contains(stream))).unwrap();
        client.control(6, &7_u32.to_be_bytes());
        client.read_until(|client| client.came.contains_key(&0)).unwrap();
        eventually_now("the command", || running("sleep 8765") == 1);
    });
    eventually("its end", async || running("sleep 8765") == 0).await;
    eventually("the last of them", async || descriptors(&daemon) <= before).await;
    assert_eq!(cri.sh(&id, "echo fine").await, "fine\n");
    let mut last = Ok(String::new());
    for _ in 0..=1000 {
        last = try_exec(&cri, &id, &["true"], "o").await;
    }
    assert_eq!(last.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn streams_that_never_come_are_waited_for_30_s() {
    let (machine, daemon, cri, sandbox, id) = sleeper().await;
    let before = descriptors(&daemon);
    let urls = (exec(&cri, &id, &["sleep", "7654"], "oe").await, port_forward(&cri, &sandbox).await);
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
        // The connection itself serves others.
        let twice = [0, 1].map(|_| forward.open(&[("port", "80"), ("requestid", "2"), ("streamtype", "error")]));
        forward.read_until(|client| client.ended.contains(&twice[1])).unwrap();
        assert!(!forward.ended.contains(&twice[0]));
    });
    assert_eq!(running("sleep 7654"), 0, "it never began");
    eventually("the last of them", async || descriptors(&daemon) <= before).await;
}

#[tokio::test]
async fn ports_are_forwarded_as_old_websocket_clients_want_it() {
    let (machine, _daemon, cri, sandbox) = echo().await;
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80, 9] };
    let url = cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let socket = machine.in_network(|| TcpStream::connect(address).unwrap());
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
    let (mut client, answer) = tokio_tungstenite::client_async(request, socket).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    client.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
    let mut came: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while !came.get(&0).is_some_and(|bytes| bytes.ends_with(b"hello"))
        || came.get(&3).is_none_or(|bytes| bytes.len() < 3)
    {
        let Message::Binary(bytes) = client.next().await.unwrap().unwrap() else { continue };
        came.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
    }
    assert_eq!((came[&0].as_slice(), came[&1].as_slice()), (&b"\x50\x00hello"[..], &b"\x50\x00"[..]));
    let refused = String::from_utf8_lossy(&came[&3][2..]);
    assert!(refused.contains("port 9 of the pod"), "{refused}");
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: vec![80_000] };
    assert_eq!(cri.runtime.clone().port_forward(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn sessions_leave_nothing_behind() {
    let (machine, daemon, cri, _, id) = sleeper().await;
    let session = async |streams: &str| {
        let url = exec(&cri, &id, &["echo", "x"], streams).await;
        let types: &[&str] =
            if streams.contains('t') { &["error", "stdout", "resize"] } else { &["error", "stdout", "stderr"] };
        machine.in_network(|| assert!(SpdyClient::open_all(&url, types).read_all(3).starts_with('x')));
    };
    // The first make what stays: threads, buffers.
    for _ in 0..200 {
        session("oe").await;
        session("ot").await;
    }
    let before = (descriptors(&daemon), threads(&daemon), resident(&daemon));
    // BERTH_TEST_SESSIONS=5000 for ten thousand.
    let pairs = std::env::var("BERTH_TEST_SESSIONS").map_or(500, |count| count.parse().unwrap());
    for _ in 0..pairs {
        session("oe").await;
        session("ot").await;
    }
    eventually("as many descriptors as before", async || descriptors(&daemon) <= before.0).await;
    let after = (descriptors(&daemon), threads(&daemon), resident(&daemon));
    assert!(after.1 <= before.1 + 1 && after.2 <= before.2 + 2048, "{before:?}, and then {after:?}");
    assert_eq!(fs::read_dir(machine.path(&format!("root/containers/{id}/exec"))).into_iter().flatten().count(), 0);
}

#[tokio::test]
async fn a_hundred_sessions_at_once_hold() {
    let (machine, _daemon, cri, _, id) = sleeper().await;
    let mut urls = Vec::new();
    for _ in 0..100 {
        urls.push(exec(&cri, &id, &["cat"], "io").await);
    }
    machine.in_network(|| {
        let mut clients: Vec<SpdyClient> =
            urls.iter().map(|url| SpdyClient::open_all(url, &["error", "stdin", "stdout"])).collect();
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
