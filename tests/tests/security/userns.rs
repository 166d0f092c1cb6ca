//! Pods with a user namespace of their own (KEP 127).

use std::{fs, os::unix::fs::MetadataExt};

use berth_proto::v1;
use berth_tests::{Config, Machine, bind, container, pod, ready};
use tonic::Code;

const HOST: u32 = 200_000;
const LENGTH: u32 = 65_536;

fn users() -> v1::UserNamespace {
    let ids = vec![v1::IdMapping { host_id: HOST, container_id: 0, length: LENGTH }];
    v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

fn sandbox_config(machine: &Machine, users: v1::UserNamespace) -> v1::PodSandboxConfig {
    let mut config = pod(machine, "p");
    let security = config.security();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users);
    config
}

fn container_config(name: &str, image: &str, script: &str) -> v1::ContainerConfig {
    let mut config = container(name, image, script);
    let security = config.security();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users());
    config
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let (machine, daemon, cri, image) = ready().await;
    let status =
        daemon.cri().runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(
        status.runtime_handlers.iter().all(|handler| handler.features.unwrap().user_namespaces)
    );
    let sandbox = cri.run_pod(sandbox_config(&machine, users())).await.unwrap();
    let shown =
        cri.pod_status(&sandbox).await.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(shown.userns_options, Some(users()));

    fs::create_dir(machine.path("v")).unwrap();
    fs::write(machine.path("v/given"), "x").unwrap();
    let ids = users();
    let mut config = container_config("c", &image, "echo up; sleep 1000");
    config.mounts.push(v1::Mount {
        uid_mappings: ids.uids.clone(),
        gid_mappings: ids.gids.clone(),
        ..bind(&machine.path("v"), "/v")
    });
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(&id, "cat /proc/self/uid_map /proc/1/gid_map | tr -s ' '").await,
        " 0 200000 65536\n 0 200000 65536\n"
    );
    let pid = cri.info(&id).await["pid"].as_u64().unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}/root")).unwrap().uid(), HOST);

    // Files of the image and those that berth makes belong to root inside, and what is written to
    // the volume belongs to root on the host.
    let owners = cri
        .sh(
            &id,
            "stat -c '%u %g' / /bin /bin/sh /etc/hosts /etc/hostname /v /v/given /dev/shm /proc/1",
        )
        .await;
    assert_eq!(owners, "0 0\n".repeat(9));
    cri.sh(
        &id,
        "echo y > /v/made; touch /new /dev/shm/s; chown 1000:1000 /new; echo z >> /etc/hosts; \
            echo out > /dev/stdout",
    )
    .await;
    assert_eq!(fs::metadata(machine.path("v/made")).unwrap().uid(), 0);
    let upper = machine.path(&format!("root/containers/{id}/upper/new"));
    assert_eq!(fs::metadata(upper).unwrap().uid(), HOST + 1000);
    // The kernel's filesystems are mounted, and the pod may change its own network.
    cri.sh(
        &id,
        "test -c /dev/null && echo x > /dev/null && test -d /sys/class/net/eth0 && test \
        -e /dev/ptmx",
    )
    .await;
    cri.sh(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await;

    // As another user, who owns the standard streams.
    let mut config = container_config("web", &image, "id -u; echo again > /dev/stdout");
    config.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    let web = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(cri.exited(&web).await.exit_code, 0);
    let log = fs::read_to_string(machine.path("logs/p/web.log")).unwrap();
    assert!(log.contains("F 1000\n") && log.contains("F again\n"), "{log}");
    cri.stop(&id, 0).await.unwrap();
    assert_eq!(cri.status(&id).await.unwrap().exit_code, 137);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn its_containers_can_do_nothing_to_the_host() {
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = sandbox_config(&machine, users());
    config.security().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    fs::create_dir(machine.path("v")).unwrap();
    let mut config = container_config("c", &image, "sleep 1000");
    config.security().privileged = true;
    // On a mount without mappings, files of the host's root belong to nobody.
    config.mounts.push(bind(&machine.path("v"), "/v"));
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(cri.sh(&id, "stat -c %u /v").await, "65534\n");
    for script in [
        "touch /v/x",
        "echo 1 > /proc/sys/kernel/panic",
        "mknod /x b 1 1",
        "mount -t tmpfs x /proc/sys && mount -o remount,rw /sys && echo 1 > /sys/kernel/mm/ksm/run",
    ] {
        let tried = cri.exec(&id, &["sh", "-c", script], 5).await.unwrap();
        assert_ne!(tried.exit_code, 0, "{script}");
    }
    // In its own namespaces it may do everything: it is root there.
    cri.sh(
        &id,
        "ip link add name d0 type dummy 2>/dev/null || ip addr add 10.1.2.3/32 dev lo; \
        hostname other; mount -t tmpfs x /tmp",
    )
    .await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn pods_that_share_their_processes_and_execs_with_a_terminal_work_too() {
    let (machine, daemon, cri, image) = ready().await;
    let mut config = sandbox_config(&machine, users());
    let security = config.security();
    security.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut shared = container_config("c", &image, "tty && sleep 1000");
    shared.tty = true;
    let options = shared.security().namespace_options.as_mut();
    options.unwrap().pid = v1::NamespaceMode::Pod.into();
    let id = cri.run(&sandbox, shared).await.unwrap();
    assert!(cri.sh(&id, "cat /proc/1/comm").await.contains("pause"));
    berth_tests::eventually("the terminal's name", async || {
        fs::read_to_string(machine.path("logs/p/c.log")).unwrap().contains("/dev/pts/0")
    })
    .await;
    // It is recovered as any other container.
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(daemon.cri().sh(&id, "id -u").await, "0\n");
    daemon.cri().remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn with_the_hosts_network_it_sees_the_hosts_devices_and_changes_none() {
    let (machine, _daemon, cri, image) = ready().await;
    let status =
        cri.runtime.clone().status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.features.unwrap().user_namespaces_host_network, "KEP 5607");
    let mut config = sandbox_config(&machine, users());
    config.hostname = String::new();
    let security = config.security();
    security.privileged = true;
    security.namespace_options.as_mut().unwrap().network = v1::NamespaceMode::Node.into();
    let sandbox = cri.run_pod(config).await.unwrap();
    for privileged in [false, true] {
        let mut config = container_config(&format!("c{privileged}"), &image, "exec sleep 1000");
        let security = config.security();
        security.privileged = privileged;
        security.namespace_options.as_mut().unwrap().network = v1::NamespaceMode::Node.into();
        security.masked_paths = vec!["/sys/firmware".into()];
        let id = cri.run(&sandbox, config).await.unwrap();
        assert_eq!(cri.sh(&id, "cat /proc/self/uid_map | tr -s ' '").await, " 0 200000 65536\n");
        // The network is the host's, and so are the interfaces in /sys.
        let links = machine.output("ip", &["-o", "link"]);
        assert_eq!(
            cri.sh(&id, "ip -o link | wc -l").await.trim(),
            links.lines().count().to_string()
        );
        cri.sh(&id, "test -e /sys/class/net/lo/mtu && test -e /sys/fs/cgroup && ls /sys/kernel")
            .await;
        let mounts = cri.sh(&id, "grep ' /sys' /proc/mounts").await;
        let sys: Vec<&str> = mounts.lines().filter(|line| line.contains(" /sys sysfs ")).collect();
        let [sys] = sys[..] else { panic!("{mounts}") };
        assert!(
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|option| sys.contains(option)),
            "{sys}"
        );
        // None of the mounts that the host has below it.
        assert!(
            !mounts.contains("debugfs")
                && !mounts.contains("securityfs")
                && !mounts.contains("tracefs"),
            "{mounts}"
        );
        for script in [
            "echo 1500 > /sys/class/net/lo/mtu",
            "echo 1 > /sys/kernel/mm/ksm/run",
            "mount -o remount,rw /sys && echo 1 > /sys/kernel/mm/ksm/run",
            "mount -o remount,bind,rw /sys && echo 1 > /sys/kernel/mm/ksm/run",
            "busybox umount /sys && echo 1 > /sys/kernel/mm/ksm/run",
            "ip link set lo down",
        ] {
            let tried = cri.exec(&id, &["sh", "-c", script], 5).await.unwrap();
            assert_ne!(tried.exit_code, 0, "{script}");
        }
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn with_the_hosts_processes_or_ipc_it_is_refused_before_anything_is_made() {
    let (machine, _daemon, cri, image) = ready().await;
    let host = i32::from(v1::NamespaceMode::Node);
    let with = |change: &dyn Fn(&mut v1::NamespaceOption)| {
        let mut config = sandbox_config(&machine, users());
        let security = config.security();
        change(security.namespace_options.as_mut().unwrap());
        config
    };
    for config in [with(&|options| options.pid = host), with(&|options| options.ipc = host)] {
        let refused = cri.run_pod(config).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains("userns_options"),
            "{refused}"
        );
    }
    let sandbox = cri.run_pod(sandbox_config(&machine, users())).await.unwrap();
    let mut config = container_config("c", &image, "true");
    let security = config.security();
    security.namespace_options.as_mut().unwrap().pid = host;
    let refused = cri.create(&sandbox, config).await.unwrap_err();
    assert!(
        refused.code() == Code::InvalidArgument && refused.message().contains("userns_options"),
        "{refused}"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn mappings_that_make_no_sense_are_refused() {
    let (machine, _daemon, cri, image) = ready().await;
    let id = |container_id, length| v1::IdMapping { host_id: HOST, container_id, length };
    let of = |mode: v1::NamespaceMode, ids: Vec<v1::IdMapping>| v1::UserNamespace {
        mode: mode.into(),
        uids: ids.clone(),
        gids: ids,
    };
    let whole = || vec![id(0, LENGTH)];
    for users in [
        of(v1::NamespaceMode::Pod, vec![]),
        of(v1::NamespaceMode::Pod, vec![id(0, 10), id(10, 10)]),
        of(v1::NamespaceMode::Pod, vec![id(1, LENGTH)]),
        of(v1::NamespaceMode::Pod, vec![id(0, 0)]),
        of(v1::NamespaceMode::Pod, vec![id(0, u32::MAX)]),
        of(v1::NamespaceMode::Node, whole()),
        of(v1::NamespaceMode::Container, whole()),
        of(v1::NamespaceMode::Target, whole()),
        v1::UserNamespace { gids: vec![], ..users() },
    ] {
        let refused = cri.run_pod(sandbox_config(&machine, users.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{users:?}: {refused}");
    }
    let sandbox = cri.run_pod(sandbox_config(&machine, users())).await.unwrap();
    let refused = cri.create(&sandbox, container("c", &image, "true")).await.unwrap_err();
    assert!(
        refused.code() == Code::InvalidArgument && refused.message().contains("userns_options"),
        "{refused}"
    );
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
