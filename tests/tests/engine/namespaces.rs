//! The namespaces of a container: its own, the host's, and those of another container.

use std::fs;

use berth_tests::{Capability, has_unified_cgroups, skip_without};
use serde_json::json;

use crate::{fail, ready, run, succeed};

/// The namespace of this process, as a link of /proc shows it.
fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

#[tokio::test]
async fn namespaces_of_the_host() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let kinds = ["pid", "ipc", "uts", "cgroup"];
    let script = "for kind in pid ipc uts cgroup; do readlink /proc/self/ns/$kind; done";
    let options = ["--pid=host", "--ipc=host", "--uts=host", "--cgroupns=host", "--userns=host"];
    let shown = run(&machine, &options, &image, script);
    assert_eq!(shown.lines().collect::<Vec<_>>(), kinds.map(own), "{shown}");
    let shown = run(&machine, &["--cgroupns=private"], &image, script);
    for (line, kind) in shown.lines().zip(kinds) {
        assert_ne!(line, own(kind));
    }
    // With the host's network it has a name of its own all the same, which is the host's unless it
    // asks for another.
    let script = "readlink /proc/self/ns/uts; hostname";
    let shown = run(&machine, &["--network=host"], &image, script);
    let host = machine.output("hostname", &[]);
    let (namespace, name) = shown.split_once('\n').unwrap();
    assert!(namespace != own("uts") && name == host.trim_end(), "{shown}");
    let named = run(&machine, &["--network=host", "--hostname=mine"], &image, "hostname");
    assert_eq!(named, "mine");
    // Only by the API.
    let asked = json!({ "Image": image, "Cmd": ["ls", "/sys/class/net"], "NetworkDisabled": true });
    engine.create("c1", asked).await;
    assert_eq!(succeed(&machine, &["start", "--attach", "c1"]), "lo");
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn names_of_hosts() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let options = [
        "--hostname=h1",
        "--domainname=d.test",
        "--add-host=x:1.2.3.4",
        "--add-host=gw:host-gateway",
    ];
    let script = "hostname; cat /proc/sys/kernel/domainname /etc/hostname; cat /etc/hosts";
    let shown = run(&machine, &options, &image, script);
    assert!(shown.starts_with("h1\nd.test\nh1\n"), "{shown}");
    for line in ["1.2.3.4\tx", "172.17.0.1\tgw", "\th1.d.test h1"] {
        assert!(shown.contains(line), "{line:?}: {shown}");
    }
    let rename = ["run", "--rm", "--uts=host", "--domainname=d.test", &image, "true"];
    let error = fail(&machine, &rename);
    assert!(error.contains("kernel.domainname"), "{error}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn namespaces_of_another_container() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let donor = |name: &str, ipc: &str| {
        let name = format!("--name={name}");
        let ipc = format!("--ipc={ipc}");
        succeed(&machine, &["run", "-d", &name, &ipc, &image, "sleep", "1000"])
    };
    let id = donor("shares", "shareable");
    donor("keeps", "private");
    let inside = |kind: &str| {
        succeed(&machine, &["exec", "shares", "readlink", &format!("/proc/self/ns/{kind}")])
    };
    succeed(&machine, &["exec", "shares", "touch", "/dev/shm/there"]);
    let options = ["--ipc=container:shares", "--pid=container:shares"];
    let script = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid; ls /dev/shm
        cat /proc/1/comm";
    assert_eq!(
        run(&machine, &options, &image, script),
        format!("{}\n{}\nthere\nsleep", inside("ipc"), inside("pid"))
    );
    // Who shares the processes of another needs no init.
    let options = ["--init", "--pid=container:shares"];
    assert_eq!(run(&machine, &options, &image, "cat /proc/1/comm"), "sleep");
    let joins = |option: &str| fail(&machine, &["run", "--rm", option, &image, "true"]);
    let error = joins("--ipc=container:keeps");
    assert!(error.contains("non-shareable IPC (hint: use IpcMode:shareable"), "{error}");
    assert!(joins("--pid=container:nope").contains("No such container: nope"));
    succeed(&machine, &["kill", "shares"]);
    for option in ["--ipc=container:shares", "--pid=container:shares"] {
        let error = joins(option);
        assert!(error.contains(&format!("container {id} is not running")), "{error}");
    }
    let without = run(&machine, &["--ipc=none"], &image, "ls /dev/shm 2>&1; true");
    assert!(without.contains("No such file"), "{without}");
    engine.remove("shares").await;
    engine.remove("keeps").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn cgroups_show_the_containers_own_limits() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    let file = match has_unified_cgroups() {
        true => "memory.max",
        false => "memory/memory.limit_in_bytes",
    };
    for (namespace, is_root) in [("private", true), ("host", false)] {
        let option = format!("--cgroupns={namespace}");
        let script = format!("cat /sys/fs/cgroup/{file}; grep memory /proc/self/cgroup; true");
        // Without a namespace, v2 shows the cgroups of the host.
        if !is_root && has_unified_cgroups() {
            continue;
        }
        let shown = run(&machine, &["--memory=64m", &option], &image, &script);
        assert!(shown.starts_with("67108864"), "{shown}");
        if !has_unified_cgroups() {
            assert_eq!(shown.ends_with(":/"), is_root, "{shown}");
        }
    }
    let directory = if has_unified_cgroups() { "x" } else { "pids/x" };
    let script = format!("mkdir /sys/fs/cgroup/{directory} 2>&1 && echo made; true");
    let refused = run(&machine, &["--cgroupns=private"], &image, &script);
    assert!(refused.contains("Read-only file system"), "{refused}");
    let options = ["--cgroupns=private", "--security-opt=writable-cgroups=true"];
    assert_eq!(run(&machine, &options, &image, &script), "made");
    machine.assert_clean().await;
}
