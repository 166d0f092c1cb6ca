//! Upgrades and downgrades: a daemon adopts what another build has started, and a shim serves
//! daemons of other builds.

use std::{
    fs,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use berth_proto::v1::{self, ContainerState};
use berth_tests::{
    Capability, Cri, Image, Machine, OldBuild, SpdyClient, container, eventually, pod, ready,
    skip_without,
};
use serde_json::Value;
use tonic::Code;

use crate::{
    shim_client::{ShimClient, memory_file, proxy},
    state,
};

/// A container that answers each line on its standard input, in its log too, and that ends with 7
/// when it is asked to.
const SERVER: &str = "trap 'exit 7' TERM; while true; do read line && echo got $line; done";

/// What one build has started and another one finds.
struct Found {
    sandbox: String,
    running: String,
    pid: u64,
    created: String,
    exited: String,
}

/// Runs a container, and again if its cgroup came too late. Today's daemon makes that while the shim
/// is loaded, and older shims do not wait for it. Only here a daemon launches those of another
/// build: an installation has both of one.
async fn run(cri: &Cri, sandbox: &str, mut config: v1::ContainerConfig) -> String {
    for attempt in 0..50 {
        config.metadata.as_mut().unwrap().attempt = attempt;
        let id = cri.create(sandbox, config.clone()).await.unwrap();
        match cri.start(&id).await {
            Ok(()) => return id,
            Err(error) => {
                assert!(error.message().contains("cgroup"), "{error}");
                cri.remove(&id).await.unwrap();
            }
        }
    }
    panic!("a cgroup was always too late");
}

impl Found {
    /// Starts a pod with a container in each state, with an exec and an attached client of the one
    /// that runs.
    async fn start(machine: &Machine, cri: &Cri) -> Self {
        let image = cri.pull_image(machine, Image::busybox()).await;
        let sandbox = cri.run_pod(pod(machine, "stays")).await.unwrap();
        let server = v1::ContainerConfig { stdin: true, ..container("runs", &image, SERVER) };
        let running = run(cri, &sandbox, server).await;
        let created = cri.create(&sandbox, container("created", &image, "exit 3")).await.unwrap();
        let exited = run(cri, &sandbox, container("exited", &image, "exit 5")).await;
        cri.exited(&exited).await;
        assert_eq!(cri.sh(&running, "echo before").await, "before\n");
        converse(machine, cri, &running, "before").await;
        tokio::spawn({
            let (cri, id) = (cri.clone(), running.clone());
            async move { cri.exec(&id, &["sleep", "6543"], 0).await }
        });
        eventually("the exec", async || cri.sh(&running, "ps").await.contains("sleep 6543")).await;
        let pid = cri.info(&running).await["pid"].as_u64().unwrap();
        Self { sandbox, running, pid, created, exited }
    }

    /// Asserts that a daemon of another build has adopted all of it, and removes it.
    async fn assert_adopted(self, machine: &Machine, cri: &Cri, how: &str) {
        let Self { sandbox, running, pid, created, exited } = self;
        assert_eq!(state(cri, &running).await, ContainerState::ContainerRunning, "{how}");
        assert_eq!(cri.info(&running).await["pid"].as_u64(), Some(pid), "{how}");
        assert_eq!(cri.status(&exited).await.unwrap().exit_code, 5, "{how}");
        let pod = cri.pod_status(&sandbox).await.unwrap();
        assert_eq!(pod.state(), v1::PodSandboxState::SandboxReady, "{how}");

        assert_eq!(cri.sh(&running, "echo $0 served >&2; echo served").await, "served\n", "{how}");
        let failed = cri.exec(&running, &["sh", "-c", "exit 9"], 20).await.unwrap();
        assert_eq!(failed.exit_code, 9, "{how}");
        // The exec of the other daemon went with that one.
        let is_gone = async || !cri.sh(&running, "ps").await.contains("sleep 6543");
        eventually("the end of the exec", is_gone).await;
        converse(machine, cri, &running, "after").await;
        let log = machine.path("logs/stays/runs.log");
        for line in ["got before", "got after"] {
            logged(&log, line).await;
        }
        fs::rename(&log, log.with_extension("rotated")).unwrap();
        reopen_log(cri, &running).await;
        converse(machine, cri, &running, "again").await;
        logged(&log, "got again").await;

        let change = v1::UpdateContainerResourcesRequest {
            container_id: running.clone(),
            linux: Some(v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
            ..Default::default()
        };
        cri.runtime.clone().update_container_resources(change).await.unwrap();
        let shares = machine.cgroup_file(&running, ("cpu", "cpu.shares"), "cpu.weight");
        assert!(["512", "59", "20"].contains(&shares.as_str()), "{how}: {shares}");

        cri.start(&created).await.unwrap();
        assert_eq!(cri.exited(&created).await.exit_code, 3, "{how}");
        cri.stop(&running, 20).await.unwrap();
        assert_eq!(cri.status(&running).await.unwrap().exit_code, 7, "{how}");
        cri.remove(&running).await.unwrap();
        cri.remove_pod(&sandbox).await.unwrap();
        machine.assert_clean().await;
    }
}

/// Waits for a line in a log: attached clients may hear it sooner.
async fn logged(log: &Path, line: &str) {
    let is_there = async || fs::read_to_string(log).is_ok_and(|text| text.contains(line));
    eventually(line, is_there).await;
}

async fn reopen_log(cri: &Cri, id: &str) {
    let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
    cri.runtime.clone().reopen_container_log(request).await.unwrap();
}

/// Attaches, sends a line, and waits for its answer.
async fn converse(machine: &Machine, cri: &Cri, id: &str, line: &str) {
    let request = v1::AttachRequest {
        container_id: id.to_owned(),
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    let url = cri.runtime.clone().attach(request).await.unwrap().into_inner().url;
    let answer = format!("got {line}\n");
    machine.in_network(|| {
        let mut client = SpdyClient::open_all(&url, &["error", "stdin", "stdout"]);
        client.send(3, format!("{line}\n").as_bytes());
        client.read_until(|client| client.text(5).contains(&answer)).unwrap();
    });
}

#[tokio::test]
async fn containers_of_an_older_shim_are_adopted() {
    if skip_without(Capability::OldBuilds) {
        return;
    }
    for build in OldBuild::all() {
        let how = format!("a shim of version {}", build.version);
        let mut machine = Machine::new();
        // Its own daemon started it, where that was built (`hack/contract --daemon`).
        let old: &[&str] =
            if build.has_daemon() { &["berthd", "berth-shim"] } else { &["berth-shim"] };
        machine.programs = Some(build.programs(&machine, old).unwrap());
        let daemon = machine.start().await;
        let found = Found::start(&machine, &daemon.cri()).await;
        daemon.kill();
        machine.programs = None;
        let daemon = machine.start().await;
        found.assert_adopted(&machine, &daemon.cri(), &how).await;
    }
}

#[tokio::test]
async fn an_older_daemon_adopts_the_containers_of_this_shim() {
    if skip_without(Capability::OldBuilds) {
        return;
    }
    // Daemons take minutes to build, so they are there only on demand. What they say to a shim is
    // on record besides, and the next test says it.
    for build in OldBuild::all().into_iter().filter(OldBuild::has_daemon) {
        let mut machine = Machine::new();
        let daemon = machine.start().await;
        let found = Found::start(&machine, &daemon.cri()).await;
        daemon.kill();
        machine.programs = Some(build.programs(&machine, &["berthd"]).unwrap());
        let daemon = machine.start().await;
        let how = format!("a daemon of version {}", build.version);
        found.assert_adopted(&machine, &daemon.cri(), &how).await;
    }
}

fn recorded(version: u32, name: &str) -> Vec<Value> {
    let path = format!("{}/contract/v{version}/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&fs::read(&path).expect(&path)).expect(&path)
}

/// Whether `actual` has the keys that `recorded` has; values differ from container to container.
fn has_keys(actual: &Value, recorded: &Value) -> bool {
    match (actual, recorded) {
        (Value::Object(actual), Value::Object(recorded)) => recorded
            .iter()
            .all(|(key, value)| actual.get(key).is_some_and(|other| has_keys(other, value))),
        (Value::Object(_), _) | (_, Value::Object(_)) => false,
        _ => true,
    }
}

#[tokio::test]
async fn a_shim_replies_to_the_recorded_requests_of_older_daemons() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut containers = Vec::new();
    for version in [2, 3] {
        let config = container(&format!("c{version}"), &image, SERVER);
        let config = v1::ContainerConfig { stdin: true, ..config };
        containers.push((version, cri.run(&sandbox, config).await.unwrap()));
    }
    daemon.kill();
    for (version, id) in containers {
        let directory = machine.path(&format!("state/containers/{id}"));
        let shim = ShimClient::connect(&directory, "shim.sock");
        let mut replies = recorded(version, "replies").into_iter();
        for request in recorded(version, "requests") {
            ask(&shim, version, &request, &mut replies);
        }
        assert_eq!(replies.next(), None, "version {version}");
        // A call of a later version is refused at once, and under its own id.
        shim.send(&serde_json::json!({ "id": 99, "call": { "of_a_later_build": {} } }), &[]);
        let refused = shim.receive();
        assert_eq!(refused["reply"]["id"], 99, "{refused}");
        assert!(refused["reply"]["result"]["Err"]["step"].is_string(), "{refused}");
    }
    let _daemon = machine.start().await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// Sends a recorded request with its descriptors, and compares what the shim says with `replies`.
fn ask(
    shim: &ShimClient,
    version: u32,
    request: &Value,
    replies: &mut impl Iterator<Item = Value>,
) {
    let is_exec = request["call"].get("exec").is_some();
    let is_attach = request["call"].get("attach").is_some();
    let (mut output, theirs) = io::pipe().unwrap();
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let sent = match (is_exec, is_attach) {
        (true, _) => vec![memory_file(&exec_document(version)), null(), theirs.into(), null()],
        (_, true) => vec![theirs.into()],
        _ => Vec::new(),
    };
    shim.send(request, &sent);
    // The pipe ends when the command has closed its copy.
    drop(sent);
    let mut compare = || {
        let (said, reply) = (shim.receive(), replies.next().expect("a reply"));
        assert!(has_keys(&said, &reply), "version {version}: {request}: {said}");
        said
    };
    compare();
    if is_exec {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "recorded\n", "version {version}");
        assert_eq!(compare()["exec_exited"]["code"], 4, "version {version}");
    }
}

/// What came with a recorded exec.
fn exec_document(version: u32) -> Vec<u8> {
    let name = if version == 2 { "exec_process" } else { "exec" };
    let path = format!("{}/contract/v{version}/{name}.json", env!("CARGO_MANIFEST_DIR"));
    fs::read(&path).expect(&path)
}

#[tokio::test]
async fn a_shim_without_a_common_version_refuses_execs_and_nothing_else() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let start =
        async |name: &str| cri.run(&sandbox, container(name, &image, SERVER)).await.unwrap();
    let (older, newer) = (start("older").await, start("newer").await);
    daemon.kill();
    // Between daemon and shim, somebody says another version than the shim does.
    for (id, version, oldest) in [(&older, 1, Value::Null), (&newer, 99, 98.into())] {
        proxy(&machine.path(&format!("state/containers/{id}")), move |packet| {
            if let Some(hello) = packet.pointer_mut("/reply/result/Ok/hello") {
                (hello["version"], hello["oldest"]) = (version.into(), oldest.clone());
            }
        });
    }
    let _daemon = machine.start().await;
    for (id, age, range) in [(&older, "an older", "1 to 1"), (&newer, "a newer", "98 to 99")] {
        assert_eq!(state(&cri, id).await, ContainerState::ContainerRunning);
        let refused = cri.exec(id, &["true"], 5).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        for told in [format!("{age} berthd"), format!("version {range}"), "started anew".into()] {
            assert!(refused.message().contains(&told), "{told}: {refused}");
        }
        reopen_log(&cri, id).await;
        // By its stop signal, which went through its shim.
        cri.stop(id, 20).await.unwrap();
        assert_eq!(cri.status(id).await.unwrap().exit_code, 7);
        cri.remove(id).await.unwrap();
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
