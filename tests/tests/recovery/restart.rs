//! However the daemon ends: everything is there afterwards, read from disk and the kernel.

use std::{collections::BTreeSet, fs};

use berth_proto::v1;
use berth_tests::{
    Cri, Daemon, FakeRegistry, Image, Layer, Machine, Response, busybox, container, digest,
    eventually, gzip, pod,
};
use nix::sys::signal::Signal;

/// A node with images, a pull in progress, and containers in every state.
struct Node {
    machine: Machine,
    cri: Cri,
    images: BTreeSet<String>,
    sandbox: String,
    running: String,
    created: String,
    exited: String,
    /// A registry that serves one blob byte by byte.
    slow: FakeRegistry,
}

impl Node {
    async fn start() -> (Self, Daemon) {
        let machine = Machine::new();
        let daemon = machine.start().await;
        let cri = daemon.cri();
        let unread = busybox().file("etc/unread", b"still here");
        let image = cri.pull_image(&machine, Image::simple(unread, &[])).await;
        cri.pull_image(&machine, Image::simple(Layer::new().file("other", b"image"), &[])).await;
        let sandbox = cri.run_pod(pod(&machine, "stays")).await.unwrap();
        let running =
            cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
        let created =
            cri.create(&sandbox, container("created", &image, "cat /etc/unread")).await.unwrap();
        let exited = cri.run(&sandbox, container("exited", &image, "exit 7")).await.unwrap();
        cri.exited(&exited).await;
        let slow = slow_registry(&machine);
        let images = images(&cri).await;
        (Self { machine, cri, images, sandbox, running, created, exited, slow }, daemon)
    }

    /// Starts a pull of two layers, of which one is complete and the other never is.
    async fn begin_pull(&self) {
        let before = self.slow.requests().len();
        let cri = self.cri.clone();
        let name = format!("{}/slow:1", self.slow.host);
        tokio::spawn(async move { cri.pull(&name).await });
        eventually("the pull asks for layers", async || {
            self.slow.requests().iter().skip(before).any(|request| request.path.contains("/blobs/"))
        })
        .await;
        let layers = self.machine.path("root/layers");
        let is_unpacking =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().ends_with(".tmp");
        eventually("a layer that is being unpacked", async || {
            fs::read_dir(&layers).unwrap().flatten().any(is_unpacking)
        })
        .await;
    }

    /// Asserts that everything is still there after the daemon ended in the way that `how` names.
    async fn assert_whole(&self, how: &str) {
        let cri = &self.cri;
        assert_eq!(images(cri).await, self.images, "{how}");
        assert_eq!(cri.sh(&self.running, "cat /etc/unread").await, "still here", "{how}");
        let state = async |id: &str| cri.status(id).await.unwrap().state();
        assert_eq!(state(&self.running).await, v1::ContainerState::ContainerRunning, "{how}");
        assert_eq!(state(&self.created).await, v1::ContainerState::ContainerCreated, "{how}");
        assert_eq!(cri.status(&self.exited).await.unwrap().exit_code, 7, "{how}");
        let pod = cri.pod_status(&self.sandbox).await.unwrap();
        assert_eq!(pod.state(), v1::PodSandboxState::SandboxReady, "{how}");
    }
}

async fn images(cri: &Cri) -> BTreeSet<String> {
    cri.images().await.into_iter().map(|image| image.id).collect()
}

fn slow_registry(machine: &Machine) -> FakeRegistry {
    let tars = [
        Layer::new().file("quick", b"quick").bytes(),
        Layer::new().file("slow", &[7; 1 << 20]).bytes(),
    ];
    let layers = tars.map(|tar| (tar.clone(), gzip(&tar)));
    let path = digest(&layers[1].1);
    let body = layers[1].1.clone();
    FakeRegistry::start(machine, Image::new(&layers, &serde_json::json!({})), move |request| {
        let answer =
            || Response { status: 200, body: body.clone(), pace: Some(1), ..Response::default() };
        request.path.ends_with(&path).then(answer)
    })
}

#[tokio::test]
async fn no_signal_and_no_failure_of_the_daemon_costs_anything() {
    let (node, mut daemon) = Node::start().await;
    node.assert_whole("at the beginning").await;
    // SIGABRT is what a panic ends in.
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGABRT,
        Signal::SIGKILL,
        // Only with what was there before.
        Signal::SIGTERM,
    ] {
        node.begin_pull().await;
        daemon.signal(signal);
        let status = daemon.wait();
        assert_eq!(
            status.success(),
            [Signal::SIGTERM, Signal::SIGINT].contains(&signal),
            "{signal}: {status}"
        );
        daemon = node.machine.start().await;
        node.assert_whole(signal.as_str()).await;
    }
    // A socket that cannot be bound: by then the daemon has read everything.
    let socket = daemon.socket.clone();
    daemon.kill();
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let (daemon, _) = node.machine.launch(&[]);
    assert!(!daemon.wait().success());
    let log = fs::read_to_string(node.machine.path("berthd.log")).unwrap();
    assert!(log.contains("berthd: listen on"), "{log}");
    fs::remove_dir(&socket).unwrap();
    let _daemon = node.machine.start().await;
    node.assert_whole("a socket that cannot be had").await;
    node.cri.start(&node.created).await.unwrap();
    assert_eq!(node.cri.exited(&node.created).await.exit_code, 0);
    node.cri.remove_pod(&node.sandbox).await.unwrap();
    node.machine.assert_clean().await;
}
