//! A root that turns read-only, and one whose disk fails: what runs is listed, executed in and
//! stopped, what cannot be done is refused, and nothing is forgotten.

use std::fs;

use berth_proto::v1::{self, ContainerState, PodSandboxState};
use berth_tests::{Capability, Cri, Image, container, eventually, pod, skip_without};

use crate::{SOON, disk::SmallDisk, state};

/// The message of the condition RuntimeReady, if it does not hold.
async fn not_ready(cri: &Cri) -> Option<String> {
    let status = cri.runtime.clone().status(v1::StatusRequest::default()).await.unwrap();
    let conditions = status.into_inner().status.unwrap().conditions;
    let mut ready = conditions.into_iter().filter(|condition| condition.r#type == "RuntimeReady");
    let ready = ready.next().unwrap();
    (!ready.status).then_some(ready.message)
}

#[tokio::test]
async fn on_a_root_that_turns_read_only_what_runs_is_served_and_a_daemon_starts() {
    let disk = SmallDisk::new();
    let machine = &disk.machine;
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(machine, Image::busybox()).await;
    let sandbox = cri.run_pod(pod(machine, "p")).await.unwrap();
    let other = cri.run_pod(pod(machine, "other")).await.unwrap();
    let sleeps = |name: &str| container(name, &image, "exec sleep 1000");
    let runs = cri.run(&sandbox, sleeps("runs")).await.unwrap();
    let stays = cri.run(&other, sleeps("stays")).await.unwrap();
    let created = cri.create(&sandbox, sleeps("created")).await.unwrap();

    disk.remount("ro").await;
    assert!(not_ready(&cri).await.unwrap().contains("mount it writable"));
    assert_eq!(cri.sh(&runs, "echo served").await, "served\n");
    for refused in [
        cri.run_pod(pod(machine, "new")).await.unwrap_err(),
        cri.create(&sandbox, sleeps("new")).await.unwrap_err(),
        cri.start(&created).await.unwrap_err(),
        cri.remove(&created).await.unwrap_err(),
    ] {
        assert!(refused.message().contains("Read-only file system"), "{refused}");
    }
    cri.stop(&runs, 0).await.unwrap();
    cri.stop_pod(&sandbox).await.unwrap();

    let mut daemon = Some(daemon);
    // By the daemon that has seen it, by one that starts meanwhile, and by one that starts when
    // records can be written again.
    for option in ["", "ro", "rw"] {
        if !option.is_empty() {
            daemon.take().unwrap().kill();
            disk.remount(option).await;
            daemon = Some(machine.start().await);
        }
        assert_eq!(not_ready(&cri).await.is_some(), option != "rw", "{option}");
        for (id, code) in [(&runs, 137), (&created, 128)] {
            let status = cri.status(id).await.unwrap();
            let found = (status.state(), status.exit_code);
            assert_eq!(found, (ContainerState::ContainerExited, code), "{option}: {status:?}");
        }
        let pod_state = async |id| cri.pod_status(id).await.unwrap().state();
        assert_eq!(pod_state(&sandbox).await, PodSandboxState::SandboxNotready, "{option}");
        assert_eq!(pod_state(&other).await, PodSandboxState::SandboxReady, "{option}");
        assert_eq!(cri.sh(&stays, "echo served").await, "served\n", "{option}");
        assert_eq!(cri.images().await.len(), 1, "{option}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    cri.remove_pod(&other).await.unwrap();
    // Its DEL succeeded, but the record of that could not be removed until now.
    eventually("no attachment", async || disk.sh("ls networks").trim().is_empty()).await;
    drop(daemon);
    disk.assert_clean().await;
}

#[tokio::test]
async fn on_a_disk_that_fails_what_runs_is_listed_and_stopped_and_a_start_is_refused() {
    if skip_without(Capability::LoopDevices) {
        return;
    }
    let disk = SmallDisk::new();
    let machine = &disk.machine;
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let image = cri.pull_image(machine, Image::busybox()).await;
    let sandbox = cri.run_pod(pod(machine, "p")).await.unwrap();
    let sleeps = |name: &str| container(name, &image, "exec sleep 1000");
    let runs = cri.run(&sandbox, sleeps("runs")).await.unwrap();
    let created = cri.create(&sandbox, sleeps("created")).await.unwrap();

    disk.unplug();
    assert!(not_ready(&cri).await.unwrap().contains("dmesg"));
    assert_eq!(state(&cri, &runs).await, ContainerState::ContainerRunning);
    // Its program is on that disk. Whether it is still in memory nobody knows, so it runs or not.
    let begun = std::time::Instant::now();
    let _ = cri.exec(&runs, &["true"], 5).await;
    for refused in [
        cri.run_pod(pod(machine, "new")).await.unwrap_err(),
        cri.create(&sandbox, sleeps("new")).await.unwrap_err(),
        cri.start(&created).await.unwrap_err(),
    ] {
        assert!(refused.message().contains("Input/output error"), "{refused}");
    }
    cri.stop(&runs, 0).await.unwrap();
    assert_eq!(cri.exited(&runs).await.exit_code, 137);
    cri.stop_pod(&sandbox).await.unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    daemon.kill();
    let (daemon, _) = machine.launch(&[]);
    assert!(!daemon.wait().success());
    let log = fs::read_to_string(machine.path("berthd.log")).unwrap();
    assert!(log.contains("look at its disk (dmesg): Input/output error"), "{log}");

    // The disk is back, with what it had when it failed.
    eventually("the end of its shims", async || machine.shims().is_empty()).await;
    disk.replug().await;
    let daemon = machine.start().await;
    assert_eq!(not_ready(&cri).await, None);
    for (id, code) in [(&runs, 137), (&created, 128)] {
        let status = cri.status(id).await.unwrap();
        let found = (status.state(), status.exit_code);
        assert_eq!(found, (ContainerState::ContainerExited, code), "{status:?}");
    }
    let pod_state = cri.pod_status(&sandbox).await.unwrap().state();
    assert_eq!(pod_state, PodSandboxState::SandboxNotready);
    cri.remove_pod(&sandbox).await.unwrap();
    eventually("no attachment", async || disk.sh("ls networks").trim().is_empty()).await;
    drop(daemon);
    disk.assert_clean().await;
}
