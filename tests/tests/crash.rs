//! `kill -9` of daemon and shim: what ran runs on, what ended is known, what was half-made is gone.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::fs;

use berth_proto::v1;
use berth_tests::{FakeRegistry, Image, Machine, container, eventually, pod, ready};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

#[tokio::test]
async fn containers_outlive_the_daemon_and_what_ended_meanwhile_is_known() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "keep")).await.unwrap();
    let before = cri.pod_status(&sandbox).await.unwrap();
    let stays =
        cri.run(&sandbox, container("stays", &image, "while true; do echo tick; sleep 0.02; done")).await.unwrap();
    fs::create_dir_all(machine.path("volume")).unwrap();
    let mut config = container("ends", &image, "while ! test -e /v/end; do sleep 0.02; done; exit 42");
    config.mounts = vec![v1::Mount {
        host_path: machine.path("volume").display().to_string(),
        container_path: "/v".into(),
        ..Default::default()
    }];
    let ends = cri.run(&sandbox, config).await.unwrap();
    let created = cri.create(&sandbox, container("created", &image, "true")).await.unwrap();
    let stopping = cri
        .run(&sandbox, container("stopping", &image, "trap '' TERM; while true; do sleep 0.05; done"))
        .await
        .unwrap();
    let patient = tokio::spawn({
        let (cri, id) = (cri.clone(), stopping.clone());
        async move { cri.stop(&id, 3).await }
    });
    let stop = machine.path(&format!("root/containers/{stopping}/stop.json"));
    eventually("the stop's record", async || fs::read_to_string(&stop).is_ok_and(|text| text.contains("true"))).await;
    let pid = cri.info(&stays).await["pid"].as_i64().unwrap();

    daemon.kill();
    assert!(patient.await.unwrap().is_err());
    fs::write(machine.path("volume/end"), "").unwrap();
    let exit = machine.path(&format!("root/containers/{ends}/exit.json"));
    eventually("the end without a daemon", async || exit.exists()).await;
    // What a crash in the middle of a create, and of a run, leaves.
    fs::create_dir_all(machine.path("root/containers/half.tmp/upper")).unwrap();
    fs::create_dir_all(machine.path("root/sandboxes/half")).unwrap();

    let _daemon = machine.start().await;
    let after = cri.pod_status(&sandbox).await.unwrap();
    assert_eq!(
        (&after.network, after.state, after.created_at, &after.labels),
        (&before.network, before.state, before.created_at, &before.labels)
    );
    assert_eq!(cri.info(&stays).await["pid"].as_i64().unwrap(), pid);
    assert_eq!(cri.sh(&stays, "echo reached").await, "reached\n");
    let ended = cri.status(&ends).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (v1::ContainerState::ContainerExited, 42));
    assert_eq!(cri.status(&created).await.unwrap().state(), v1::ContainerState::ContainerCreated);
    cri.start(&created).await.unwrap();
    // The stop that nobody waits for any more comes to its end, once, at its own time.
    assert_eq!(cri.exited(&stopping).await.exit_code, 137);
    assert!(!machine.path("root/containers/half.tmp").exists() && !machine.path("root/sandboxes/half").exists());
    assert_eq!(cri.run_pod(pod(&machine, "keep")).await.unwrap_err().code(), Code::AlreadyExists);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_along_and_is_told() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "shim")).await.unwrap();
    let kill_shim = |id: &str| {
        let (pid, _) = machine.shims().into_iter().find(|(_, command)| command.contains(id)).expect("its shim");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    };
    let seen = cri.run(&sandbox, container("seen", &image, "exec sleep 1000")).await.unwrap();
    let pid = cri.info(&seen).await["pid"].as_i64().unwrap();
    kill_shim(&seen);
    let status = cri.exited(&seen).await;
    assert!(status.exit_code == 137 && status.message.contains("shim"), "{status:?}");
    eventually("its process gone", async || !fs::exists(format!("/proc/{pid}")).unwrap()).await;
    // The same while no daemon looks.
    let unseen = cri.run(&sandbox, container("unseen", &image, "exec sleep 1000")).await.unwrap();
    daemon.kill();
    kill_shim(&unseen);
    let _daemon = machine.start().await;
    assert_eq!(cri.exited(&unseen).await.exit_code, 137);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_killed_daemon_takes_its_execs_along_and_nothing_else() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    // One that ended and left something behind, and one that runs with a child.
    cri.sh(&id, "sleep 2001 >/dev/null 2>&1 &").await;
    let running = tokio::spawn({
        let (cri, id) = (cri.clone(), id.clone());
        async move { cri.exec(&id, &["sh", "-c", "sleep 2002 & sleep 2003; true"], 0).await }
    });
    let sleeps = async || {
        let seen = cri.sh(&id, "ps -o args").await;
        ["sleep 1000", "sleep 2001", "sleep 2002", "sleep 2003"].map(|sleep| seen.contains(sleep))
    };
    eventually("all of them", async || sleeps().await == [true; 4]).await;
    daemon.kill();
    running.await.unwrap().unwrap_err();
    let _daemon = machine.start().await;
    eventually("the end of the exec", async || sleeps().await == [true, true, false, false]).await;
    let requests = machine.path(&format!("root/containers/{id}/exec"));
    eventually("no request", async || fs::read_dir(&requests).unwrap().next().is_none()).await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_of_a_pods_life_leaves_nothing_that_a_restart_does_not_remove() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let image = format!("{}/a:1", registry.host);
    let cri = daemon.cri();
    cri.pull(&image).await.unwrap();
    // A life takes some 60 ms here: kills at steps through it meet every stage of it.
    for step in 0..30 {
        let life = tokio::spawn({
            let (cri, config, image) = (cri.clone(), pod(&machine, "victim"), image.clone());
            async move {
                let sandbox = cri.run_pod(config).await?;
                let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await?;
                cri.exec(&id, &["true"], 0).await?;
                cri.stop(&id, 0).await?;
                cri.remove_pod(&sandbox).await
            }
        });
        tokio::time::sleep(std::time::Duration::from_millis(step * 4)).await;
        daemon.kill();
        let _ = life.await.unwrap();
        daemon = machine.start().await;
        // What is listed can be removed, and then nothing is left, listed or not.
        for sandbox in cri.pods(v1::PodSandboxFilter::default()).await {
            cri.remove_pod(&sandbox.id).await.unwrap_or_else(|error| panic!("step {step}: {error}"));
        }
        machine.assert_clean().await;
    }
    drop(daemon);
}

#[tokio::test]
async fn after_a_reboot_pods_are_not_ready_and_containers_have_ended() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "boot")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    daemon.kill();
    // What a power loss leaves: no processes, no mounts, nothing below /run, and records of another boot.
    for (pid, _) in machine.shims() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    eventually("the end of its shims", async || machine.shims().is_empty()).await;
    machine.output(
        "sh",
        &[
            "-c",
            &format!(
                "umount -l $(grep -E '{}|netns/' /proc/mounts | cut -d' ' -f2); rm -rf {}/state /run/netns/*",
                machine.dir.path().display(),
                machine.dir.path().display()
            ),
        ],
    );
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let other = "00000000-0000-0000-0000-000000000000";
    for path in [format!("root/containers/{id}/started.json"), format!("root/sandboxes/{sandbox}/ready.json")] {
        let text = fs::read_to_string(machine.path(&path)).unwrap();
        assert!(text.contains(boot.trim()));
        fs::write(machine.path(&path), text.replace(boot.trim(), other)).unwrap();
    }
    let _daemon = machine.start().await;
    assert_eq!(cri.pod_status(&sandbox).await.unwrap().state(), v1::PodSandboxState::SandboxNotready);
    let status = cri.status(&id).await.unwrap();
    assert!(status.exit_code == 255 && status.message.contains("rebooted"), "{status:?}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
