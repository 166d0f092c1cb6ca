//! Attacks that other runtimes fell to, played against this one.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::fs;

use berth_proto::v1;
use berth_tests::{Image, Layer, busybox, container, pod, ready};
use tonic::Code;

/// CVE-2019-5736: the runtime's own program is open in the container for the moment of every start and exec.
#[tokio::test]
async fn the_shims_program_cannot_be_overwritten_from_inside() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "p");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    let script =
        "while :; do for exe in /proc/[0-9]*/exe; do echo overwritten 2>/dev/null > $exe; done; done 2>/dev/null";
    let mut config = container("attacker", &image, script);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let id = cri.run(&sandbox, config).await.unwrap();
    for _ in 0..50 {
        assert_eq!(cri.exec(&id, &["echo", "whole"], 20).await.unwrap().stdout, b"whole\n");
    }
    // The program itself, run in the container: it can be read, and that is all.
    let run = cri.exec(&id, &["/proc/self/exe", "--version"], 20).await.unwrap();
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("berth-shim "), "{run:?}");
    let next = cri.run(&sandbox, container("next", &image, "exit 5")).await.unwrap();
    assert_eq!(cri.exited(&next).await.exit_code, 5);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2024-21626: a working directory through a descriptor that the runtime forgot to close.
#[tokio::test]
async fn no_descriptor_of_the_host_is_a_working_directory() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for number in 3..24 {
        let mut config = container(&format!("c{number}"), &image, "ls -di / ./ ../../../../../");
        config.working_dir = format!("/proc/self/fd/{number}");
        let id = cri.create(&sandbox, config).await.unwrap();
        let refused = cri.start(&id).await.unwrap_err();
        assert!(refused.message().contains("/proc/self/fd/"), "{refused}");
    }
    // And none is open for a program to find.
    let id = cri.run(&sandbox, container("open", &image, "exec sleep 1000")).await.unwrap();
    assert_eq!(cri.sh(&id, "ls /proc/1/fd; ls /proc/$$/fd; true").await, "0\n1\n2\n0\n1\n2\n");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2021-30465: a container swaps a directory of a shared volume for a link while another one is mounted below it.
#[tokio::test]
async fn a_mount_target_that_turns_into_a_link_leads_nowhere_outside() {
    let (machine, _daemon, cri, image) = ready().await;
    let [shared, inner, outside] = ["shared", "inner", "outside"].map(|name| {
        fs::create_dir(machine.path(name)).unwrap();
        machine.path(name)
    });
    let mount = |host: &std::path::Path, target: &str| v1::Mount {
        host_path: host.display().to_string(),
        container_path: target.to_owned(),
        ..v1::Mount::default()
    };
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = format!(
        "cd /shared; mkdir -p d; while :; do mv d e; ln -s ../../../../../../../../..{} d; rm d; mv e d; done 2>/dev/null",
        outside.display()
    );
    let mut attacker = container("attacker", &image, &script);
    attacker.mounts = vec![mount(&shared, "/shared")];
    cri.run(&sandbox, attacker).await.unwrap();
    for number in 0..40 {
        let mut victim = container(&format!("victim{number}"), &image, "exec sleep 1000");
        victim.mounts = vec![mount(&shared, "/shared"), mount(&inner, "/shared/d/sub")];
        let id = cri.create(&sandbox, victim).await.unwrap();
        // Lost races are errors, and won ones are inside.
        let _ = cri.start(&id).await;
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2025-31133, CVE-2026-41579: what covers masked paths, or the places themselves, replaced by links of the image.
#[tokio::test]
async fn links_in_place_of_dev_and_proc_uncover_nothing() {
    let (machine, _daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let secret = machine.path("secret");
    fs::write(&secret, "secret").unwrap();
    let outside = format!("../../../../../../../..{}", secret.display());
    for layer in [
        Layer::new().directory("dev", 0o755).symlink("dev/null", &outside),
        Layer::new().symlink("dev", "/etc"),
        Layer::new().symlink("dev", "../../../../../../../../dev"),
        Layer::new().symlink("proc", "/tmp"),
        Layer::new().directory("proc", 0o755).symlink("proc/kcore", &outside),
        Layer::new().symlink("sys", "proc"),
    ] {
        let (base, top) = (busybox().bytes(), layer.bytes());
        let layers = [(base.clone(), berth_tests::gzip(&base)), (top.clone(), berth_tests::gzip(&top))];
        let name = cri.pull_image(&machine, Image::new(&layers, &serde_json::json!({}))).await;
        let mut config =
            container("c", &name, "test -c /dev/null && ! grep -q . /proc/kcore && ! echo x > /proc/sys/kernel/panic");
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.masked_paths = vec!["/proc/kcore".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
        let id = cri.create(&sandbox, config).await.unwrap();
        match cri.start(&id).await {
            Ok(()) => assert_eq!(cri.exited(&id).await.exit_code, 0),
            Err(refused) => assert!(refused.message().contains("start container"), "{refused}"),
        }
        cri.remove(&id).await.unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2026-47262, CVE-2024-40635, CVE-2026-15809: the image's user database, and names that are almost numbers.
#[tokio::test]
async fn users_are_read_bounded_and_never_mistaken() {
    let (machine, _daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let large = Layer::new().directory("etc", 0o755).file("etc/passwd", &vec![b'\n'; 11 << 20]);
    let named = Layer::new().directory("etc", 0o755).file("etc/passwd", b"4294967296:x:0:0::/:\nweb:x:7:7::/ho\tme:\n");
    let fifo = berth_tests::Entry { kind: tar::EntryType::Fifo, name: "etc/passwd", ..berth_tests::Entry::default() };
    let fifo = Layer::new().directory("etc", 0o755).entry(&fifo);
    for (layer, user, what) in
        [(large, "", "larger than 10 MiB"), (named, "4294967296", "out of range"), (fifo, "web", "no such user")]
    {
        let (base, top) = (busybox().bytes(), layer.bytes());
        let layers = [(base.clone(), berth_tests::gzip(&base)), (top.clone(), berth_tests::gzip(&top))];
        let name = cri.pull_image(&machine, Image::new(&layers, &serde_json::json!({ "User": user }))).await;
        let refused = cri.run(&sandbox, container("c", &name, "true")).await.unwrap_err();
        assert!(refused.message().contains(what), "{user:?}: {refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
        let mut lines = container("lines", &name, "true");
        lines.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_username = "web\nroot:x:0:0".into();
        let refused = cri.run(&sandbox, lines).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2025-31133 with a race: containers share the directory that is their /dev, and one swaps what covers masked files.
#[tokio::test]
async fn what_covers_masked_paths_cannot_be_swapped_in_between() {
    let (machine, _daemon, cri, image) = ready().await;
    let secret = machine.path("secret");
    fs::write(&secret, "secret").unwrap();
    fs::create_dir(machine.path("dev")).unwrap();
    let mount = |target: &str| v1::Mount {
        host_path: machine.path("dev").display().to_string(),
        container_path: target.to_owned(),
        ..v1::Mount::default()
    };
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = format!(
        "cd /shared; while :; do mknod n c 1 3; mv n null; ln -s ../../../../../../../../..{} l; mv l null; done 2>/dev/null",
        secret.display()
    );
    let mut attacker = container("attacker", &image, &script);
    attacker.mounts = vec![mount("/shared")];
    cri.run(&sandbox, attacker).await.unwrap();
    let mut started = 0;
    for number in 0..40 {
        let look = "head -c 6 /proc/kcore; head -c 6 /proc/keys";
        let mut victim = container(&format!("victim{number}"), &image, look);
        victim.mounts = vec![mount("/dev")];
        let security = victim.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into()];
        let id = cri.create(&sandbox, victim).await.unwrap();
        // Lost races are errors that name what is in the device's place.
        match cri.start(&id).await {
            Err(refused) => assert!(refused.message().contains("/dev/null"), "{refused}"),
            Ok(()) => {
                started += 1;
                cri.exited(&id).await;
                let log = fs::read_to_string(machine.path(&format!("logs/p/victim{number}.log"))).unwrap();
                assert!(!log.contains("stdout"), "{log}");
            }
        }
    }
    assert!(started > 0, "the race was never lost by the attacker");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// A set-user-ID program gains nothing under no_new_privs.
#[tokio::test]
async fn no_new_privs_holds_for_set_user_id_programs() {
    let (machine, _daemon, cri, _) = ready().await;
    // Any static program that stays for a while.
    let program = fs::read(berth_tests::binary("berth-shim")).unwrap();
    let entry = berth_tests::Entry { name: "suid", mode: 0o4755, content: &program, ..berth_tests::Entry::default() };
    let layer = Layer::new().entry(&entry).bytes();
    let layers = [(layer.clone(), berth_tests::gzip(&layer))];
    let name = cri.pull_image(&machine, Image::new(&layers, &serde_json::json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for (no_new_privs, effective) in [(false, "0"), (true, "1000")] {
        let mut config = container(&format!("c{effective}"), &name, "");
        config.command = vec!["/suid".into(), "hold".into()];
        config.stdin = true;
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.no_new_privs = no_new_privs;
        let id = cri.run(&sandbox, config).await.unwrap();
        let pid = cri.info(&id).await["pid"].as_u64().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        assert_eq!(ids.split_whitespace().take(2).collect::<Vec<_>>(), ["1000", effective]);
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
