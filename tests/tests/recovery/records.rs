//! Records that are damaged or lost: whose they are is still listed, served as far as possible, and
//! can be removed.

use std::{
    fs::{self},
    path::PathBuf,
    time::Instant,
};

use berth_proto::v1::{self, ContainerState, PodSandboxState};
use berth_tests::{
    Config, Cri, Damage, Image, Layer, Machine, busybox, container, eventually, pod, ready,
};
use tonic::Code;

use crate::{SOON, state};

#[tokio::test]
async fn a_living_container_is_served_without_its_record_its_socket_or_its_state_directory() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let sleeps = |name: &str| container(name, &image, "exec sleep 1000");
    let record = cri.run(&sandbox, sleeps("record")).await.unwrap();
    let socket = cri.run(&sandbox, sleeps("socket")).await.unwrap();
    let directory = cri.run(&sandbox, sleeps("directory")).await.unwrap();
    let well = cri.run(&sandbox, sleeps("well")).await.unwrap();
    let pid = cri.info(&record).await["pid"].as_u64();
    daemon.kill();
    let started = machine.path(&format!("root/containers/{record}/started.json"));
    fs::remove_file(&started).unwrap();
    fs::remove_file(machine.path(&format!("state/containers/{socket}/shim.sock"))).unwrap();
    fs::remove_dir_all(machine.path(&format!("state/containers/{directory}"))).unwrap();
    let begun = Instant::now();
    let _daemon = machine.start().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(cri.sh(&well, "echo served").await, "served\n");
    // The shim repeats what the record said.
    eventually("the record", async || {
        state(&cri, &record).await == ContainerState::ContainerRunning
    })
    .await;
    assert_eq!(cri.info(&record).await["pid"].as_u64(), pid);
    assert!(started.exists());
    assert_eq!(cri.sh(&record, "echo served").await, "served\n");
    for id in [&socket, &directory] {
        eventually("what the lock says", async || {
            state(&cri, id).await == ContainerState::ContainerRunning
        })
        .await;
        let refused = cri.exec(id, &["true"], 5).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        cri.stop(id, 0).await.unwrap();
        assert_eq!(cri.status(id).await.unwrap().exit_code, 137);
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// What the container is that a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Created,
    Running,
    /// With code 7.
    Exited,
    /// It runs, and its pod has a pause process.
    WithPause,
}

/// What is true once its record is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    /// All that was true before, and everything works.
    Same,
    /// The container's state is not known, and the status says why.
    Unknown,
    /// It cannot be started, and the error says which file is damaged.
    Unstartable,
    /// It has ended, and nobody knows how.
    EndUnknown,
    /// It was never complete, as far as can be told: nothing is left of it.
    Removed,
    /// The pod is not ready, and its container runs on.
    NotReady,
    /// As before, but nobody knows the pod's address.
    NoAddress,
}

/// A kind of record, and what follows from its damage.
struct Record {
    /// `C`, `P`, `L` and `A` stand for the container, its pod, its layer and its address.
    path: &'static str,
    life: Life,
    truth: fn(Damage) -> Truth,
    /// What the log says in a line with the id of the container, pod or layer.
    log: fn(Damage) -> Option<&'static str>,
}

/// Every kind of record of pods and containers: `shim/src/layout.rs`, `runtime/base/src/layout.rs`,
/// a layer's, and an address'.
const RECORDS: [Record; 26] = [
    record(
        "root/containers/C/meta.json",
        Life::Running,
        |_| Truth::Unknown,
        |_| Some("crictl rm -f"),
    ),
    record("root/containers/C/meta.json", Life::Created, |_| Truth::Removed, |_| Some("removed")),
    record("root/containers/C/spec.json", Life::Running, |_| Truth::Same, |_| None),
    record("root/containers/C/spec.json", Life::Created, |_| Truth::Unstartable, |_| None),
    record("root/containers/C/seccomp.bpf", Life::Running, |_| Truth::Same, |_| None),
    record("root/containers/C/seccomp.bpf", Life::Created, |_| Truth::Unstartable, |_| None),
    record("root/containers/C/lock", Life::Running, unknown_if_replaced, told_if_replaced),
    record(
        "root/containers/C/started.json",
        Life::Running,
        |_| Truth::Same,
        |_| Some("written again"),
    ),
    record("root/containers/C/started.json", Life::Exited, |_| Truth::Same, |_| None),
    record("root/containers/C/exit.json", Life::Running, |_| Truth::Same, |_| None),
    record(
        "root/containers/C/exit.json",
        Life::Exited,
        |_| Truth::EndUnknown,
        |_| Some("exit.json is damaged"),
    ),
    record(
        "root/containers/C/stop.json",
        Life::Running,
        |_| Truth::Same,
        |_| Some("must be asked for again"),
    ),
    record("state/containers/C/exit.json", Life::Running, |_| Truth::Same, |_| None),
    record("root/layers/L/layer.json", Life::Running, |_| Truth::Same, |_| Some("pulled again")),
    record("root/layers/L/tar.zst", Life::Running, |_| Truth::Same, |_| None),
    record(
        "root/sandboxes/P/meta.json",
        Life::Running,
        |_| Truth::NotReady,
        |_| Some("crictl rmp -f"),
    ),
    record(
        "root/sandboxes/P/ready.json",
        Life::Running,
        |_| Truth::NotReady,
        |_| Some("crictl rmp -f"),
    ),
    record("root/sandboxes/P/stopped", Life::Running, |_| Truth::NotReady, |_| None),
    record("root/sandboxes/P/pin.json", Life::Running, |_| Truth::Same, |_| None),
    record("root/networks/P", Life::Running, |_| Truth::NoAddress, |_| Some("crictl rmp -f")),
    record("root/sandboxes/P/pause/spec.json", Life::WithPause, |_| Truth::Same, |_| None),
    record("root/sandboxes/P/pause/started.json", Life::WithPause, |_| Truth::Same, |_| None),
    record("root/sandboxes/P/pause/exit.json", Life::WithPause, |_| Truth::Same, |_| None),
    record(
        "root/sandboxes/P/pause/lock",
        Life::WithPause,
        not_ready_if_replaced,
        told_of_pod_if_replaced,
    ),
    record("state/ipam/berth/A", Life::Running, |_| Truth::Same, |_| None),
    record("state/ipam/berth/P@eth0", Life::Running, |_| Truth::Same, |_| None),
];

const fn record(
    path: &'static str,
    life: Life,
    truth: fn(Damage) -> Truth,
    log: fn(Damage) -> Option<&'static str>,
) -> Record {
    Record { path, life, truth, log }
}

/// A lock belongs to the file. Whatever has the file's name instead says nothing.
fn unknown_if_replaced(damage: Damage) -> Truth {
    if damage.is_in_place() { Truth::Same } else { Truth::Unknown }
}

fn told_if_replaced(damage: Damage) -> Option<&'static str> {
    (!damage.is_in_place()).then_some("crictl rm -f")
}

fn not_ready_if_replaced(damage: Damage) -> Truth {
    if damage.is_in_place() { Truth::Same } else { Truth::NotReady }
}

fn told_of_pod_if_replaced(damage: Damage) -> Option<&'static str> {
    (!damage.is_in_place()).then_some("crictl rmp -f")
}

/// A pod with one container, of which one record is damaged.
struct Victim {
    record: &'static Record,
    what: String,
    pod: String,
    id: String,
    layer: String,
    address: String,
    pid: Option<u64>,
}

impl Victim {
    async fn make(
        machine: &Machine,
        cri: &Cri,
        image: &str,
        record: &'static Record,
        damage: Damage,
    ) -> Self {
        let what = format!("{} {:?} {damage:?}", record.path, record.life);
        // An image of its own, so that no other container is on the damaged layer.
        let own = match record.path.contains("layers") {
            true => {
                let layer = busybox().file("own", what.as_bytes());
                Some(cri.pull_image(machine, Image::simple(layer, &[])).await)
            }
            false => None,
        };
        let name = what.to_lowercase().replace([' ', '/', '.', '@', '_'], "-");
        let mut config = pod(machine, &name);
        config.hostname = "victim".to_owned();
        if record.life == Life::WithPause {
            config.namespaces().pid = v1::NamespaceMode::Pod.into();
        }
        let sandbox = cri.run_pod(config).await.unwrap();
        let script = if record.life == Life::Exited { "exit 7" } else { "exec sleep 1000" };
        let mut config = container("c", own.as_deref().unwrap_or(image), script);
        let default = v1::security_profile::ProfileType::RuntimeDefault;
        config.security().seccomp =
            Some(v1::SecurityProfile { profile_type: default.into(), ..Default::default() });
        if record.life == Life::WithPause {
            config.namespaces().pid = v1::NamespaceMode::Pod.into();
        }
        let id = cri.create(&sandbox, config).await.unwrap();
        let mut pid = None;
        if record.life != Life::Created {
            cri.start(&id).await.unwrap();
            pid = cri.info(&id).await["pid"].as_u64();
        }
        if record.life == Life::Exited {
            cri.exited(&id).await;
        }
        let layer = own_layer(machine, &id).file_name().unwrap().to_string_lossy().into_owned();
        let address = address(cri, &sandbox).await;
        Self { record, what, pod: sandbox, id, layer, address, pid }
    }

    /// The path of its record.
    fn path(&self, machine: &Machine) -> PathBuf {
        let mut path = machine.dir.path().to_owned();
        for part in self.record.path.split('/') {
            path.push(match part {
                "C" => &self.id,
                "P" => &self.pod,
                "L" => &self.layer,
                "A" => &self.address,
                "P@eth0" => {
                    path.push(format!("{}@eth0", self.pod));
                    continue;
                }
                part => part,
            });
        }
        path
    }

    /// Asserts what is true of it with its damaged record.
    async fn assert_truth(&self, cri: &Cri, truth: Truth) {
        let what = &self.what;
        let filter = v1::ContainerFilter { id: self.id.clone(), ..Default::default() };
        let listed = cri.containers(filter).await;
        if truth == Truth::Removed {
            assert!(listed.is_empty(), "{what}: {listed:?}");
            return;
        }
        assert!(listed.len() == 1 && listed[0].pod_sandbox_id == self.pod, "{what}: {listed:?}");
        let is_ready =
            cri.pod_status(&self.pod).await.unwrap().state() == PodSandboxState::SandboxReady;
        assert_eq!(is_ready, truth != Truth::NotReady, "{what}");
        if truth != Truth::NotReady {
            let known = if truth == Truth::NoAddress { "" } else { &self.address };
            assert_eq!(address(cri, &self.pod).await, known, "{what}");
        }
        match (truth, self.record.life) {
            (Truth::Unknown, _) => {
                eventually(what, async || {
                    let status = cri.status(&self.id).await.unwrap();
                    status.state() == ContainerState::ContainerUnknown
                        && status.message.contains("crictl rm -f")
                })
                .await;
                let refused = cri.exec(&self.id, &["true"], 5).await.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition, "{what}: {refused}");
            }
            (Truth::Unstartable, _) => {
                let refused = cri.start(&self.id).await.unwrap_err();
                let name = self.record.path.rsplit('/').next().unwrap();
                assert!(refused.message().contains(name), "{what}: {refused}");
                let status = cri.status(&self.id).await.unwrap();
                assert_eq!(
                    (status.state(), status.exit_code),
                    (ContainerState::ContainerExited, 128),
                    "{what}"
                );
            }
            (Truth::EndUnknown, _) => {
                let status = cri.exited(&self.id).await;
                assert!(
                    status.exit_code == 137 && status.message.contains("damaged"),
                    "{what}: {status:?}"
                );
            }
            (_, Life::Exited) => assert_eq!(cri.exited(&self.id).await.exit_code, 7, "{what}"),
            (_, Life::Created) => {
                assert_eq!(state(cri, &self.id).await, ContainerState::ContainerCreated, "{what}");
            }
            (_, Life::Running | Life::WithPause) => {
                eventually(what, async || {
                    state(cri, &self.id).await == ContainerState::ContainerRunning
                })
                .await;
                assert_eq!(cri.info(&self.id).await["pid"].as_u64(), self.pid, "{what}");
                assert_eq!(cri.sh(&self.id, "echo served").await, "served\n", "{what}");
            }
        }
    }

    fn assert_told(&self, log: &str, phrase: &str) {
        let names = [&self.id, &self.pod, &self.layer];
        let is_told =
            |line: &str| line.contains(phrase) && names.iter().any(|name| line.contains(*name));
        assert!(log.lines().any(is_told), "{}: no {phrase:?} in\n{log}", self.what);
    }

    /// Removes its pod: nothing of it is left, and nothing runs.
    async fn assert_removable(&self, machine: &Machine, cri: &Cri) {
        let what = &self.what;
        cri.remove_pod(&self.pod).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        if let Some(pid) = self.pid {
            eventually(what, async || !fs::exists(format!("/proc/{pid}")).unwrap()).await;
        }
        assert!(!machine.path(&format!("root/containers/{}", self.id)).exists(), "{what}");
        assert!(!machine.path(&format!("root/sandboxes/{}", self.pod)).exists(), "{what}");
    }
}

/// The pod's address, empty where it has none.
async fn address(cri: &Cri, pod: &str) -> String {
    cri.pod_status(pod).await.unwrap().network.map(|network| network.ip).unwrap_or_default()
}

#[tokio::test]
async fn a_damaged_record_is_told_hides_nobody_and_its_pod_can_be_removed() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    let cri = daemon.cri();
    let well = cri.run_pod(pod(&machine, "well")).await.unwrap();
    let image = cri.pull_image(&machine, Image::busybox()).await;
    let served = cri.run(&well, container("served", &image, "exec sleep 1000")).await.unwrap();
    for damage in Damage::ALL {
        let mut victims = Vec::new();
        for record in &RECORDS {
            victims.push(Victim::make(&machine, &cri, &image, record, damage).await);
        }
        let layers_before = layers(&machine);
        let told_before = daemon.log().len();
        daemon.kill();
        for victim in &victims {
            damage.put(&victim.path(&machine));
        }
        let begun = Instant::now();
        daemon = machine.start().await;
        assert!(begun.elapsed() < SOON, "{damage:?}: {:?}", begun.elapsed());
        assert_eq!(cri.sh(&served, "echo served").await, "served\n", "{damage:?}");
        for victim in &victims {
            victim.assert_truth(&cri, (victim.record.truth)(damage)).await;
        }
        assert_eq!(layers(&machine), layers_before, "{damage:?}");
        let log = daemon.log()[told_before..].to_owned();
        for victim in &victims {
            if let Some(phrase) = (victim.record.log)(damage) {
                victim.assert_told(&log, phrase);
            }
        }
        // No other pod has an address that one of them has.
        let new = cri.run_pod(pod(&machine, "new")).await.unwrap();
        let own = address(&cri, &new).await;
        assert!(!own.is_empty() && victims.iter().all(|victim| victim.address != own), "{own}");
        cri.run(&new, container("new", &image, "exec sleep 1000")).await.unwrap();
        cri.remove_pod(&new).await.unwrap();
        for victim in &victims {
            victim.assert_removable(&machine, &cri).await;
        }
    }
    drop(daemon);
    let _daemon = machine.start().await;
    cri.remove_pod(&well).await.unwrap();
    machine.assert_clean().await;
}

fn layers(machine: &Machine) -> usize {
    fs::read_dir(machine.path("root/layers")).unwrap().count()
}

/// The layer that a container runs on.
fn own_layer(machine: &Machine, id: &str) -> PathBuf {
    let text =
        fs::read_to_string(machine.path(&format!("root/containers/{id}/meta.json"))).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    machine.path("root/layers").join(meta["layers"][0].as_str().unwrap())
}

/// A layer that nothing needs is removed, also when its record is damaged.
#[tokio::test]
async fn a_damaged_layer_that_nobody_needs_is_collected_and_a_pull_heals_one_that_is_used() {
    let (machine, daemon, cri, _) = ready().await;
    let image = Image::simple(busybox().file("own", b"mine"), &[]);
    let name = cri.pull_image(&machine, image.clone()).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &name, "exec sleep 1000")).await.unwrap();
    let used = own_layer(&machine, &id);
    cri.pull_image(&machine, Image::simple(Layer::new().file("unused", b"x"), &[])).await;
    daemon.kill();
    for entry in fs::read_dir(machine.path("root/layers")).unwrap().flatten() {
        if entry.file_name() != "empty" {
            fs::write(entry.path().join("layer.json"), "{").unwrap();
        }
    }
    let daemon = machine.start().await;
    // The layer of the container, and the empty one of images without layers.
    eventually("the others are gone", async || layers(&machine) == 2).await;
    assert!(daemon.log().contains("layer.json is missing or damaged"), "{}", daemon.log());
    let again = cri.pull_image(&machine, image).await;
    assert!(fs::read_to_string(used.join("layer.json")).unwrap().contains("bytes"));
    let second = cri.run(&sandbox, container("d", &again, "exec sleep 1000")).await.unwrap();
    for id in [&id, &second] {
        assert_eq!(cri.sh(id, "cat /own").await, "mine");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
