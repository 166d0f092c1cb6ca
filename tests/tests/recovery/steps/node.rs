//! A node that is asked, with something armed at a step, and is asked again.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Stdio, sync::Arc};

use berth_proto::v1::{self, ContainerState, NamespaceMode, PodSandboxState};
use berth_tests::{
    Capability, Config, Cri, Daemon, FakeRegistry, Image, Layer, Machine, binary, busybox,
    container, digest, eventually, finish, gzip, pod,
};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::verb::{Verb, may_fail_unnoticed};
use crate::shim_of;

/// A machine whose programs can be made to fail.
pub(super) struct Node {
    machine: Machine,
    daemon: Option<Daemon>,
    pub cri: Cri,
    /// What containers run on.
    image: String,
    /// What is pulled and removed. Its registry goes on serving.
    other: String,
    /// What is on the disk of images without `other`.
    stored: BTreeSet<String>,
}

/// What a verb is about.
pub(super) struct Object {
    pub sandbox: String,
    pub container: String,
}

impl Node {
    pub(super) async fn start() -> Self {
        let mut machine = Machine::with_faults();
        machine.plugin_seconds = 20;
        let daemon = machine.start().await;
        let cri = daemon.cri();
        let image = cri.pull_image(&machine, Image::busybox()).await;
        let layers = [busybox(), Layer::new().file("above", b"it")].map(|layer| layer.bytes());
        let layers = layers.map(|tar| (tar.clone(), gzip(&tar)));
        let registry = FakeRegistry::start(&machine, Image::new(&layers, &json!({})), |_| None);
        let other = format!("{}/other:1", registry.host);
        let mut node =
            Self { machine, daemon: Some(daemon), cri, image, other, stored: BTreeSet::new() };
        node.stored = node.stored();
        node
    }

    /// How many descriptors the daemon has, but for connections to registries: they are kept for
    /// the next pull, and how many there are is a matter of timing.
    pub(super) fn descriptors(&self) -> usize {
        let process = format!("/proc/{}", self.daemon.as_ref().expect("it runs").pid());
        let tcp = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("{process}/net/{table}")));
        let tcp: String = tcp.into_iter().flatten().collect();
        // proc_pid_net(5): the tenth column is the inode.
        let inodes: BTreeSet<&str> =
            tcp.lines().filter_map(|line| line.split_whitespace().nth(9)).collect();
        let is_tcp = |link: &PathBuf| {
            let link = link.to_string_lossy();
            link.strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|inode| inodes.contains(inode))
        };
        let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().flatten();
        let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|link| !is_tcp(link)).count()
    }

    async fn restart(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
        self.daemon = Some(self.machine.start().await);
    }

    /// The directories of images and layers, as far as they differ with the images that are there.
    fn stored(&self) -> BTreeSet<String> {
        let root = self.machine.path("root");
        let directories = ["layers", "images/pulls", "images/partial", "images/blobs/sha256"];
        let entries = directories.iter().flat_map(|name| fs::read_dir(root.join(name)).unwrap());
        entries.flatten().map(|entry| entry.path().display().to_string()).collect()
    }

    /// A pod with everything that has a step of its own.
    fn pod(&self, verb: Verb) -> v1::PodSandboxConfig {
        let mut config = pod(&self.machine, &format!("{verb:?}").to_lowercase());
        config.namespaces().pid = NamespaceMode::Pod.into();
        if Capability::Nat.is_there() {
            config.port_mappings = vec![v1::PortMapping {
                protocol: v1::Protocol::Tcp.into(),
                container_port: 80,
                host_port: 8080 + verb as i32,
                host_ip: String::new(),
            }];
        }
        if Capability::TokenBucket.is_there() {
            let rates = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];
            config.annotations.extend(rates.map(|key| (key.to_owned(), "10M".to_owned())));
        }
        config
    }

    /// Makes what a verb needs.
    pub(super) async fn prepare(&self, verb: Verb) -> Object {
        let mut object = Object { sandbox: String::new(), container: String::new() };
        match verb {
            Verb::RunPod | Verb::Pull | Verb::Import => return object,
            Verb::PullAgain | Verb::RemoveImage => {
                self.cri.pull(&self.other).await.unwrap();
                return object;
            }
            _ => object.sandbox = self.cri.run_pod(self.pod(verb)).await.unwrap(),
        }
        if verb == Verb::Create {
            return object;
        }
        // Exec and the shim are about a container with a PID namespace of its own.
        let script = "trap 'exit 0' TERM; sleep 1000 & wait";
        let mut config = container("main", &self.image, script);
        let main = self.cri.run(&object.sandbox, config.clone()).await.unwrap();
        object.container.clone_from(&main);
        if verb == Verb::Start {
            config = container("second", &self.image, "exec sleep 1000");
            config.namespaces().pid = NamespaceMode::Target.into();
            config.namespaces().target_id = main;
            object.container = self.cri.create(&object.sandbox, config).await.unwrap();
        }
        if verb == Verb::KillWithoutShim {
            kill(shim_of(&self.machine, &object.container), Signal::SIGSTOP).unwrap();
        }
        object
    }

    pub(super) async fn ask(&self, verb: Verb, object: &Object) -> Result<(), Status> {
        let Object { sandbox, container: id } = object;
        match verb {
            Verb::RunPod => self.cri.run_pod(self.pod(verb)).await.map(drop),
            Verb::StopPod => self.cri.stop_pod(sandbox).await,
            Verb::RemovePod => self.cri.remove_pod(sandbox).await,
            Verb::Create => {
                let config = container("main", &self.image, "exec sleep 1000");
                self.cri.create(sandbox, config).await.map(drop)
            }
            Verb::Start => self.cri.start(id).await,
            Verb::Exec => self.cri.exec(id, &["true"], 10).await.map(drop),
            Verb::Stop => self.cri.stop(id, 2).await,
            Verb::Kill | Verb::KillWithoutShim => self.cri.stop(id, 0).await,
            Verb::Remove => self.cri.remove(id).await,
            Verb::Pull | Verb::PullAgain => self.cri.pull(&self.other).await.map(drop),
            Verb::Import => self.import().await,
            Verb::RemoveImage => self.cri.remove_image(&self.other).await,
        }
    }

    /// `berthd images import` of an archive.
    async fn import(&self) -> Result<(), Status> {
        let archive = self.machine.path("archive.tar");
        if !archive.exists() {
            let layer = busybox().file("imported", b"it").bytes();
            let config = json!({
                "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
                "os": "linux",
                "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            });
            let manifest = json!([
                { "Config": "config.json", "RepoTags": ["imported:1"], "Layers": ["layer.tar"] }
            ]);
            let tar = Layer::new()
                .file("manifest.json", manifest.to_string().as_bytes())
                .file("config.json", config.to_string().as_bytes())
                .file("layer.tar", &layer);
            fs::write(&archive, tar.bytes()).unwrap();
        }
        let mut command = self.machine.command(binary("berthd"));
        command.args(["images", "import", "--listen"]).arg(self.machine.path("berth.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output =
            tokio::task::spawn_blocking(move || finish(command.arg(archive).spawn().unwrap()));
        let output = output.await.unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(Status::internal(String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Asks again: success, or what was asked for has been done.
    async fn ask_again(&self, verb: Verb, object: &Object, step: &str) {
        let Err(error) = self.ask(verb, object).await else { return };
        match (verb, error.code()) {
            (Verb::RunPod, Code::AlreadyExists) => {
                let pods = self.cri.pods(v1::PodSandboxFilter::default()).await;
                assert!(matches!(&pods[..], [pod] if pod.state() == PodSandboxState::SandboxReady));
            }
            (Verb::Create, Code::AlreadyExists) => {
                let containers = self.cri.containers(v1::ContainerFilter::default()).await;
                let [container] = &containers[..] else { panic!("{step}: {containers:?}") };
                assert_eq!(container.state(), ContainerState::ContainerCreated, "{step}");
            }
            (Verb::Start | Verb::Exec, Code::FailedPrecondition) => {
                self.assert_final(&object.container, step).await;
            }
            _ => panic!("{step}: asked again: {error}"),
        }
    }

    /// Asserts that a container runs, or has ended and says why.
    async fn assert_final(&self, id: &str, step: &str) {
        let mut status = self.cri.status(id).await.unwrap();
        // A shim that could not be connected to is tried again.
        eventually(&format!("{step}: a known state"), async || {
            status = self.cri.status(id).await.unwrap();
            status.state() != ContainerState::ContainerUnknown
        })
        .await;
        match status.state() {
            ContainerState::ContainerRunning => {
                assert_eq!(self.cri.sh(id, "echo runs").await, "runs\n", "{step}");
            }
            ContainerState::ContainerExited => {
                assert!(status.exit_code != 0 && !status.reason.is_empty(), "{step}: {status:?}");
            }
            other => panic!("{step}: it is {other:?}"),
        }
    }

    /// Removes all that is listed. Then nothing may be left.
    pub(super) async fn clean_up(&self, step: &str) {
        for pod in self.cri.pods(v1::PodSandboxFilter::default()).await {
            let removed = self.cri.remove_pod(&pod.id).await;
            removed.unwrap_or_else(|error| panic!("{step}: {error}"));
        }
        for name in [&self.other, "imported:1"] {
            self.cri.remove_image(name).await.unwrap();
        }
        self.machine.assert_clean().await;
        let left = || self.stored().difference(&self.stored).cloned().collect::<Vec<_>>();
        let what = format!("{step}: nothing left of images, but for {:?}", left());
        eventually(&what, async || left().is_empty()).await;
    }

    /// Kills the process that comes to `step`, and asks again after a restart of the daemon.
    pub(super) async fn kill_at(&mut self, step: &str, verb: Verb, is_daemon: bool) {
        let object = self.prepare(verb).await;
        self.machine.arm(step, "kill");
        let first = self.ask(verb, &object).await;
        self.machine.reached(step).await;
        if is_daemon {
            let daemon = self.daemon.take().unwrap();
            daemon.wait();
            assert!(first.is_err(), "{step}: an answer by a daemon that is dead");
        }
        self.restart().await;
        self.ask_again(verb, &object, step).await;
        self.clean_up(step).await;
    }

    /// Lets `step` fail: the verb says so, and that is all that is left of it.
    pub(super) async fn fail_at(&mut self, step: &str, verb: Verb) {
        let object = self.prepare(verb).await;
        self.machine.arm(step, "fail");
        let first = self.ask(verb, &object).await;
        self.machine.reached(step).await;
        let said = format!("a test lets {step} fail");
        match first {
            Err(error) => assert!(error.message().contains(&said), "{step}: {error}"),
            Ok(()) => assert!(may_fail_unnoticed(step), "{step} failed, and the verb did not"),
        }
        if verb == Verb::RunPod {
            self.machine.assert_clean().await;
        }
        self.ask_again(verb, &object, step).await;
        if step == "pull_image.forget" {
            // The image is there, and the next start finds the rest.
            self.restart().await;
        }
        self.clean_up(step).await;
    }

    /// Stops the process that comes to `step`, and asks without waiting for the answer.
    pub(super) async fn stop_at(
        self: &Arc<Self>,
        step: &str,
        verb: Verb,
    ) -> JoinHandle<Result<(), Status>> {
        let object = self.prepare(verb).await;
        self.machine.arm(step, "stop");
        let node = self.clone();
        let asked = tokio::spawn(async move { node.ask(verb, &object).await });
        self.machine.reached(step).await;
        asked
    }
}
