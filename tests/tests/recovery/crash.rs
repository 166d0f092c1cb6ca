//! The daemon and shims are killed: containers run on, those that ended meanwhile are known, and
//! incomplete ones are removed.

use std::fs;

use berth_proto::v1;
use berth_tests::{FakeRegistry, Image, Machine, bind, container, eventually, pod, ready};
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
    let stays = cri
        .run(&sandbox, container("stays", &image, "while true; do echo tick; sleep 0.02; done"))
        .await
        .unwrap();
    fs::create_dir_all(machine.path("volume")).unwrap();
    let mut config =
        container("ends", &image, "while ! test -e /v/end; do sleep 0.02; done; exit 42");
    config.mounts = vec![bind(&machine.path("volume"), "/v")];
    let ends = cri.run(&sandbox, config).await.unwrap();
    let created = cri.create(&sandbox, container("created", &image, "true")).await.unwrap();
    let stopping = cri
        .run(
            &sandbox,
            container("stopping", &image, "trap '' TERM; while true; do sleep 0.05; done"),
        )
        .await
        .unwrap();
    let patient = tokio::spawn({
        let cri = cri.clone();
        let id = stopping.clone();
        async move { cri.stop(&id, 3).await }
    });
    let stop = machine.path(&format!("root/containers/{stopping}/stop.json"));
    eventually("the stop's record", async || {
        fs::read_to_string(&stop).is_ok_and(|text| text.contains("true"))
    })
    .await;
    let pid = cri.info(&stays).await["pid"].as_i64().unwrap();

    daemon.kill();
    assert!(patient.await.unwrap().is_err());
    fs::write(machine.path("volume/end"), "").unwrap();
    let exit = machine.path(&format!("root/containers/{ends}/exit.json"));
    eventually("the end without a daemon", async || exit.exists()).await;
    // Directories as a crash leaves them in the middle of CreateContainer and of RunPodSandbox.
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
    // A stop whose caller and daemon are gone is completed at the time that it was to end at.
    assert_eq!(cri.exited(&stopping).await.exit_code, 137);
    assert!(
        !machine.path("root/containers/half.tmp").exists()
            && !machine.path("root/sandboxes/half").exists()
    );
    assert_eq!(cri.run_pod(pod(&machine, "keep")).await.unwrap_err().code(), Code::AlreadyExists);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_along_and_is_told() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "shim")).await.unwrap();
    let kill_shim = |id: &str| {
        let (pid, _) = machine
            .shims()
            .into_iter()
            .find(|(_, command)| command.contains(id))
            .expect("its shim");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    };
    let seen = cri.run(&sandbox, container("seen", &image, "exec sleep 1000")).await.unwrap();
    let pid = cri.info(&seen).await["pid"].as_i64().unwrap();
    kill_shim(&seen);
    let status = cri.exited(&seen).await;
    assert!(status.exit_code == 137 && status.message.contains("shim"), "{status:?}");
    eventually("its process gone", async || !fs::exists(format!("/proc/{pid}")).unwrap()).await;
    // The same while no daemon runs.
    let unseen = cri.run(&sandbox, container("unseen", &image, "exec sleep 1000")).await.unwrap();
    daemon.kill();
    kill_shim(&unseen);
    let _daemon = machine.start().await;
    assert_eq!(cri.exited(&unseen).await.exit_code, 137);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_update_of_a_container_whose_shim_was_just_killed_is_no_fault_of_the_request() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    // Again and again, because the update has to come just after the cgroup went.
    for round in 0..20 {
        let id =
            cri.run(&sandbox, container(&format!("c{round}"), &image, "sleep 1000")).await.unwrap();
        kill(super::shim_of(&machine, &id), Signal::SIGKILL).unwrap();
        loop {
            let shares = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
            let update = v1::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(shares),
                ..Default::default()
            };
            cri.runtime.clone().update_container_resources(update).await.unwrap();
            if super::state(&cri, &id).await == v1::ContainerState::ContainerExited {
                break;
            }
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_killed_daemon_takes_its_execs_along_and_nothing_else() {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    // One container that has ended and left a process behind, and one that runs with a child.
    cri.sh(&id, "sleep 2001 >/dev/null 2>&1 &").await;
    let running = tokio::spawn({
        let cri = cri.clone();
        let id = id.clone();
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
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_of_a_pods_life_leaves_nothing_a_restart_does_not_remove() {
    let machine = Machine::new();
    let mut daemon = machine.start().await;
    let registry = FakeRegistry::start(&machine, Image::busybox(), |_| None);
    let image = format!("{}/a:1", registry.host);
    let cri = daemon.cri();
    cri.pull(&image).await.unwrap();
    // A pod lives for about 60 ms here, so that kills in steps through it meet every stage.
    for step in 0..30 {
        let life = tokio::spawn({
            let cri = cri.clone();
            let config = pod(&machine, "victim");
            let image = image.clone();
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
        // Everything that is listed can be removed, and then nothing is left.
        for sandbox in cri.pods(v1::PodSandboxFilter::default()).await {
            cri.remove_pod(&sandbox.id)
                .await
                .unwrap_or_else(|error| panic!("step {step}: {error}"));
        }
        machine.assert_clean().await;
    }
    drop(daemon);
}

#[tokio::test]
async fn after_a_reboot_pods_are_not_ready_and_containers_have_ended() {
    let (mut machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "boot")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    machine.reboot(daemon);
    let _daemon = machine.start().await;
    assert_eq!(
        cri.pod_status(&sandbox).await.unwrap().state(),
        v1::PodSandboxState::SandboxNotready
    );
    let status = cri.status(&id).await.unwrap();
    assert!(status.exit_code == 255 && status.message.contains("rebooted"), "{status:?}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
