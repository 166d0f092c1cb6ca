//! A reboot, played by another boot id: a file that is mounted over the kernel's, for all processes
//! of the test's machine.

use std::fs;

use berth_proto::v1::{self, ContainerState, PodSandboxState};
use berth_tests::{Config, Image, Layer, Machine, container, eventually, pod, ready};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

/// Ends all that a power loss ends. The daemon has ended already.
async fn reboot(machine: &Machine) {
    restart_node(machine).await;
    fs::write(machine.path("boot_id"), "00000000-0000-4000-8000-000000000000\n").unwrap();
    let boot_id = machine.path("boot_id").display().to_string();
    machine.output("mount", &["--bind", &boot_id, "/proc/sys/kernel/random/boot_id"]);
}

/// Ends all that goes with a node that is a container, whose kernel stays.
async fn restart_node(machine: &Machine) {
    for (pid, _) in machine.shims() {
        // Its container goes with it, or by the next daemon.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    eventually("the end of its shims", async || machine.shims().is_empty()).await;
    let own = machine.dir.path().display().to_string();
    // Mounts, what is below /run, and the network devices of the host.
    let script = format!(
        "umount -l $(grep -E '{own}|netns/' /proc/mounts | cut -d' ' -f2); \
         rm -rf {own}/state /run/netns/*; ip link del berth0; nft flush ruleset"
    );
    machine.output("sh", &["-c", &script]);
}

#[tokio::test]
async fn after_another_boot_everything_is_known_nothing_runs_and_new_pods_do() {
    let (machine, daemon, cri, image) = ready().await;
    let unsynced = Image::simple(Layer::new().file("other", b"image"), &[]);
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut shared = pod(&machine, "shared");
    shared.namespaces().pid = v1::NamespaceMode::Pod.into();
    let shared = cri.run_pod(shared).await.unwrap();
    let runs = cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
    let created = cri.create(&sandbox, container("created", &image, "true")).await.unwrap();
    let ended = cri.run(&sandbox, container("ended", &image, "exit 7")).await.unwrap();
    cri.exited(&ended).await;
    let layers = || -> Vec<String> {
        let entries = fs::read_dir(machine.path("root/layers")).unwrap().flatten();
        let read = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("layer.json"));
        entries.filter_map(|entry| read(entry).ok()).collect()
    };
    eventually("durable layers", async || {
        layers().iter().all(|record| !record.contains("boot_id"))
    })
    .await;
    // A layer that was never synced: a power loss may have emptied its files.
    let lost = cri.pull_image(&machine, unsynced).await;
    eventually("a durable layer", async || {
        layers().iter().all(|record| !record.contains("boot_id"))
    })
    .await;
    daemon.kill();
    for entry in fs::read_dir(machine.path("root/layers")).unwrap().flatten() {
        if entry.path().join("fs/other").exists() {
            let record = r#"{"bytes":1,"inodes":1,"boot_id":"of the boot before"}"#;
            fs::write(entry.path().join("layer.json"), record).unwrap();
        }
    }
    reboot(&machine).await;
    let _daemon = machine.start().await;
    for pod in [&sandbox, &shared] {
        let state = cri.pod_status(pod).await.unwrap().state();
        assert_eq!(state, PodSandboxState::SandboxNotready);
    }
    let status = cri.status(&runs).await.unwrap();
    assert!(status.exit_code == 255 && status.message.contains("rebooted"), "{status:?}");
    assert_eq!(cri.status(&ended).await.unwrap().exit_code, 7);
    let status = cri.status(&created).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert_eq!(cri.start(&created).await.unwrap_err().code(), Code::FailedPrecondition);
    assert!(cri.image_status(&image).await.unwrap().is_some());
    assert!(cri.image_status(&lost).await.unwrap().is_none());
    // New pods have addresses of the same network, beginning anew.
    let new = cri.run_pod(pod(&machine, "new")).await.unwrap();
    let id = cri.run(&new, container("new", &image, "exec sleep 1000")).await.unwrap();
    assert_eq!(cri.sh(&id, "echo served").await, "served\n");
    for pod in [&sandbox, &shared, &new] {
        cri.remove_pod(pod).await.unwrap();
    }
    machine.output("umount", &["/proc/sys/kernel/random/boot_id"]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_node_that_starts_anew_within_one_boot_has_no_ready_pods_left() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let runs = cri.run(&sandbox, container("runs", &image, "exec sleep 1000")).await.unwrap();
    daemon.kill();
    restart_node(&machine).await;
    let _daemon = machine.start().await;
    let state = cri.pod_status(&sandbox).await.unwrap().state();
    assert_eq!(state, PodSandboxState::SandboxNotready);
    assert_eq!(cri.status(&runs).await.unwrap().state(), ContainerState::ContainerExited);
    let new = cri.run_pod(pod(&machine, "new")).await.unwrap();
    let id = cri.run(&new, container("new", &image, "exec sleep 1000")).await.unwrap();
    assert_eq!(cri.sh(&id, "echo served").await, "served\n");
    for pod in [&sandbox, &new] {
        cri.remove_pod(pod).await.unwrap();
    }
    machine.assert_clean().await;
}
