//! Pods with a user namespace of their own (KEP 127).
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{fs, os::unix::fs::MetadataExt};

use berth_proto::v1;
use berth_tests::{Machine, container, pod, ready};
use tonic::Code;

const HOST: u32 = 200_000;
const LENGTH: u32 = 65_536;

fn users() -> v1::UserNamespace {
    let ids = vec![v1::IdMapping { host_id: HOST, container_id: 0, length: LENGTH }];
    v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
}

fn sandbox_config(machine: &Machine, users: v1::UserNamespace) -> v1::PodSandboxConfig {
    let mut config = pod(machine, "p");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users);
    config
}

fn container_config(name: &str, image: &str, script: &str) -> v1::ContainerConfig {
    let mut config = container(name, image, script);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().userns_options = Some(users());
    config
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let (machine, daemon, cri, image) = ready().await;
    let status = daemon.cri().runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.runtime_handlers.iter().all(|handler| handler.features.unwrap().user_namespaces));
    let sandbox = cri.run_pod(sandbox_config(&machine, users())).await.unwrap();
    let shown = cri.pod_status(&sandbox).await.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(shown.userns_options, Some(users()));

    fs::create_dir(machine.path("v")).unwrap();
    fs::write(machine.path("v/given"), "x").unwrap();
    let ids = users();
    let mut config = container_config("c", &image, "echo up; sleep 1000");
    config.mounts.push(v1::Mount {
        host_path: machine.path("v").display().to_string(),
        container_path: "/v".into(),
        uid_mappings: ids.uids.clone(),
        gid_mappings: ids.gids.clone(),
        ..v1::Mount::default()
    });
    let id = cri.run(&sandbox, config).await.unwrap();
    assert_eq!(
        cri.sh(&id, "cat /proc/self/uid_map /proc/1/gid_map | tr -s ' '").await,
        " 0 200000 65536\n 0 200000 65536\n"
    );
    let pid = cri.info(&id).await["pid"].as_u64().unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}/root")).unwrap().uid(), HOST);

    // Files of the image and of berth are root's, and what is written reaches the volume as root's of the host.
    let owners =
        cri.sh(&id, "stat -c '%u %g' / /bin /bin/sh /etc/hosts /etc/hostname /v /v/given /dev/shm /proc/1").await;
    assert_eq!(owners, "0 0\n".repeat(9));
    cri.sh(
        &id,
        "echo y > /v/made; touch /new /dev/shm/s; chown 1000:1000 /new; echo z >> /etc/hosts; echo out > /dev/stdout",
    )
    .await;
    assert_eq!(fs::metadata(machine.path("v/made")).unwrap().uid(), 0);
    let upper = machine.path(&format!("root/containers/{id}/upper/new"));
    assert_eq!(fs::metadata(upper).unwrap().uid(), HOST + 1000);
    // The kernel's filesystems are there, and the pod's network is the pod's to change.
    cri.sh(&id, "test -c /dev/null && echo x > /dev/null && test -d /sys/class/net/eth0 && test -e /dev/ptmx").await;
    cri.sh(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await;

    // As another user, whose streams are its own.
    let mut config = container_config("web", &image, "id -u; echo again > /dev/stdout");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_user =
        Some(v1::Int64Value { value: 1000 });
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
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let sandbox = cri.run_pod(config).await.unwrap();
    fs::create_dir(machine.path("v")).unwrap();
    let mut config = container_config("c", &image, "sleep 1000");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    // Without a mapping, the host's root is nobody inside.
    let (host_path, container_path) = (machine.path("v").display().to_string(), "/v".to_owned());
    config.mounts.push(v1::Mount { host_path, container_path, ..v1::Mount::default() });
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
    // And everything in its own: it is root there.
    cri.sh(&id, "ip link add name d0 type dummy 2>/dev/null || ip addr add 10.1.2.3/32 dev lo; hostname other; mount -t tmpfs x /tmp").await;
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn pods_that_share_their_processes_and_execs_with_a_terminal_work_too() {
    let (machine, daemon, cri, image) = ready().await;
    let mut config = sandbox_config(&machine, users());
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = v1::NamespaceMode::Pod.into();
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut shared = container_config("c", &image, "tty && sleep 1000");
    shared.tty = true;
    let options = shared.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options.as_mut();
    options.unwrap().pid = v1::NamespaceMode::Pod.into();
    let id = cri.run(&sandbox, shared).await.unwrap();
    assert!(cri.sh(&id, "cat /proc/1/comm").await.contains("pause"));
    berth_tests::eventually("the terminal's name", async || {
        fs::read_to_string(machine.path("logs/p/c.log")).unwrap().contains("/dev/pts/0")
    })
    .await;
    // Recovered as any other.
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(daemon.cri().sh(&id, "id -u").await, "0\n");
    daemon.cri().remove_pod(&sandbox).await.unwrap();
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
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("userns_options"), "{refused}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
