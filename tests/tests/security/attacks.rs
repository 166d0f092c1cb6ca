//! Published attacks on other runtimes, played against this one.

use std::fs;

use berth_proto::v1;
use berth_tests::{Config, Image, Layer, bind, busybox, container, eventually, pod, ready};
use tonic::Code;

/// CVE-2019-5736: a container reaches the runtime's own program through /proc/PID/exe during a
/// start or exec, and overwrites it.
#[tokio::test]
async fn the_shims_program_cannot_be_overwritten_from_inside() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "p");
    config.security().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    let script = "while :; do for exe in /proc/[0-9]*/exe; do echo overwritten 2>/dev/null > \
        $exe; done; done 2>/dev/null";
    let mut config = container("attacker", &image, script);
    config.security().privileged = true;
    let id = cri.run(&sandbox, config).await.unwrap();
    for _ in 0..50 {
        assert_eq!(cri.exec(&id, &["echo", "whole"], 20).await.unwrap().stdout, b"whole\n");
    }
    // The program can be read and run from inside, and not be written.
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
    // No descriptor of the host is open for a program to find.
    let id = cri.run(&sandbox, container("open", &image, "exec sleep 1000")).await.unwrap();
    assert_eq!(cri.sh(&id, "ls /proc/1/fd; ls /proc/$$/fd; true").await, "0\n1\n2\n0\n1\n2\n");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2021-30465: a container replaces a directory of a shared volume by a link while a mount for
/// another container is made below it.
#[tokio::test]
async fn a_mount_target_that_turns_into_a_link_leads_nowhere_outside() {
    let (machine, _daemon, cri, image) = ready().await;
    let [shared, inner, outside] = ["shared", "inner", "outside"].map(|name| {
        fs::create_dir(machine.path(name)).unwrap();
        machine.path(name)
    });
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = format!(
        "cd /shared; mkdir -p d; while :; do mv d e; ln -s ../../../../../../../../..{} d; rm d; \
            mv e d; done 2>/dev/null",
        outside.display()
    );
    let mut attacker = container("attacker", &image, &script);
    attacker.mounts = vec![bind(&shared, "/shared")];
    cri.run(&sandbox, attacker).await.unwrap();
    for number in 0..40 {
        let mut victim = container(&format!("victim{number}"), &image, "exec sleep 1000");
        victim.mounts = vec![bind(&shared, "/shared"), bind(&inner, "/shared/d/sub")];
        let id = cri.create(&sandbox, victim).await.unwrap();
        // If the attacker won every race, the case that is tested would never occur: some victims
        // are left alone.
        let _ = cri.start(&id).await;
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2025-31133, CVE-2026-41579: the image has links in the places of /dev/null and of masked
/// paths, so that nothing is covered.
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
        let base = busybox().bytes();
        let top = layer.bytes();
        let layers =
            [(base.clone(), berth_tests::gzip(&base)), (top.clone(), berth_tests::gzip(&top))];
        let name = cri.pull_image(&machine, Image::new(&layers, &serde_json::json!({}))).await;
        let mut config = container(
            "c",
            &name,
            "test -c /dev/null && ! grep -q . /proc/kcore && ! echo x > /proc/sys/kernel/panic",
        );
        let security = config.security();
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

/// CVE-2026-47262, CVE-2024-40635, CVE-2026-15809: hostile user databases of images, and user names
/// that are almost numbers.
#[tokio::test]
async fn users_are_read_bounded_and_never_mistaken() {
    let (machine, _daemon, cri, _) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let large = Layer::new().directory("etc", 0o755).file("etc/passwd", &vec![b'\n'; 11 << 20]);
    let named = Layer::new()
        .directory("etc", 0o755)
        .file("etc/passwd", b"4294967296:x:0:0::/:\nweb:x:7:7::/ho\tme:\n");
    let fifo = berth_tests::Entry {
        kind: tar::EntryType::Fifo,
        name: "etc/passwd",
        ..berth_tests::Entry::default()
    };
    let fifo = Layer::new().directory("etc", 0o755).entry(&fifo);
    for (layer, user, what) in [
        (large, "", "larger than 10 MiB"),
        (named, "4294967296", "out of range"),
        (fifo, "web", "no such user"),
    ] {
        let base = busybox().bytes();
        let top = layer.bytes();
        let layers =
            [(base.clone(), berth_tests::gzip(&base)), (top.clone(), berth_tests::gzip(&top))];
        let name = cri
            .pull_image(&machine, Image::new(&layers, &serde_json::json!({ "User": user })))
            .await;
        let refused = cri.run(&sandbox, container("c", &name, "true")).await.unwrap_err();
        assert!(refused.message().contains(what), "{user:?}: {refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
        let mut lines = container("lines", &name, "true");
        lines.security().run_as_username = "web\nroot:x:0:0".into();
        let refused = cri.run(&sandbox, lines).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        for created in cri.containers(v1::ContainerFilter::default()).await {
            cri.remove(&created.id).await.unwrap();
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// CVE-2025-31133 as a race: containers share a directory as their /dev, and one of them replaces
/// what masked files are covered with.
#[tokio::test]
async fn what_covers_masked_paths_cannot_be_swapped_in_between() {
    let (machine, _daemon, cri, image) = ready().await;
    let secret = machine.path("secret");
    fs::write(&secret, "secret").unwrap();
    let dev = machine.path("dev");
    fs::create_dir(&dev).unwrap();
    // A filesystem for /tmp may be mounted with nodev, and the victims must find a working device.
    let dev = dev.to_str().unwrap();
    machine.output("mount", &["--bind", dev, dev]);
    machine.output("mount", &["-o", "remount,bind,dev", dev]);
    let mount = |target: &str| bind(&machine.path("dev"), target);
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let script = format!(
        "cd /shared; while :; do mknod n c 1 3; mv n null; while test -e hold; do touch held; done; rm -f held
         ln -s ../../../../../../../../..{} l; mv l null; done 2>/dev/null",
        secret.display()
    );
    let mut attacker = container("attacker", &image, &script);
    attacker.mounts = vec![mount("/shared")];
    cri.run(&sandbox, attacker).await.unwrap();
    let hold = machine.path("dev/hold");
    let held = machine.path("dev/held");
    for number in 0..40 {
        // Where the attacker wins every race, what is looked for would not be seen: some victims
        // are spared.
        let is_spared = number % 10 == 9;
        if is_spared {
            fs::write(&hold, "").unwrap();
            eventually("the real device", async || held.exists()).await;
        }
        let look = "head -c 6 /proc/kcore; head -c 6 /proc/keys";
        let mut victim = container(&format!("victim{number}"), &image, look);
        victim.mounts = vec![mount("/dev")];
        let security = victim.security();
        security.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into()];
        let id = cri.create(&sandbox, victim).await.unwrap();
        // A race that the attacker wins is an error, which names what is in the device's place, or
        // that the device cannot be mounted any more.
        match cri.start(&id).await {
            Err(refused) => {
                let message = refused.message();
                assert!(!is_spared, "{message}");
                assert!(
                    message.contains("/dev/null") || message.contains("mask /proc/"),
                    "{message}"
                );
            }
            Ok(()) => {
                cri.exited(&id).await;
                let log = fs::read_to_string(machine.path(&format!("logs/p/victim{number}.log")))
                    .unwrap();
                assert!(!log.contains("stdout"), "{log}");
            }
        }
        if is_spared {
            fs::remove_file(&hold).unwrap();
            eventually("the attack to go on", async || !held.exists()).await;
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.output("umount", &[dev]);
    machine.assert_clean().await;
}

/// no_new_privs: a set-user-ID program gains nothing.
#[tokio::test]
async fn no_new_privs_holds_for_set_user_id_programs() {
    let (machine, _daemon, cri, _) = ready().await;
    // Any static program that runs for a while.
    let program = fs::read(berth_tests::binary("berth-shim")).unwrap();
    let entry = berth_tests::Entry {
        name: "suid",
        mode: 0o4755,
        content: &program,
        ..berth_tests::Entry::default()
    };
    let layer = Layer::new().entry(&entry).bytes();
    let layers = [(layer.clone(), berth_tests::gzip(&layer))];
    let name = cri.pull_image(&machine, Image::new(&layers, &serde_json::json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for (no_new_privs, effective) in [(false, "0"), (true, "1000")] {
        let mut config = container(&format!("c{effective}"), &name, "");
        config.command = vec!["/suid".into(), "hold".into()];
        config.stdin = true;
        let security = config.security();
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
