//! Pods and URLs to stream to, and what a session costs the daemon.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Cri, Daemon, Machine, container, eventually, pod, ready};
use serde_json::{Value, json};

/// Exec; `streams` says which ones: `i` stdin, `o` stdout, `e` stderr, `t` a terminal.
pub(crate) async fn exec(cri: &Cri, id: &str, command: &[&str], streams: &str) -> String {
    try_exec(cri, id, command, streams).await.unwrap()
}

pub(crate) async fn try_exec(
    cri: &Cri,
    id: &str,
    command: &[&str],
    streams: &str,
) -> Result<String, tonic::Status> {
    let [stdin, stdout, stderr, tty] = ['i', 'o', 'e', 't'].map(|stream| streams.contains(stream));
    let cmd = command.iter().map(|word| (*word).to_owned()).collect();
    let request = v1::ExecRequest { container_id: id.to_owned(), cmd, tty, stdin, stdout, stderr };
    Ok(cri.runtime.clone().exec(request).await?.into_inner().url)
}

pub(crate) async fn attach(cri: &Cri, id: &str, streams: &str) -> String {
    let [stdin, stdout, stderr, tty] = ['i', 'o', 'e', 't'].map(|stream| streams.contains(stream));
    let request = v1::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
    cri.runtime.clone().attach(request).await.unwrap().into_inner().url
}

pub(crate) async fn port_forward(cri: &Cri, sandbox: &str) -> String {
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: Vec::new() };
    cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url
}

/// A machine with one container that sleeps.
pub(crate) async fn sleeper() -> (Machine, Daemon, Cri, String, String) {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 100000")).await.unwrap();
    (machine, daemon, cri, sandbox, id)
}

/// A machine with a pod that echoes on its port 80.
pub(crate) async fn echo() -> (Machine, Daemon, Cri, String) {
    let (machine, daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec nc -ll -p 80 -e cat")).await.unwrap();
    eventually("the server", async || {
        cri.sh(&id, "cat /proc/net/tcp /proc/net/tcp6").await.contains(":0050 ")
    })
    .await;
    (machine, daemon, cri, sandbox)
}

/// The exit code in a Status object of the error stream, or its reason.
pub(crate) fn ending(text: &str) -> Value {
    let status: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    match status["status"].as_str() {
        Some("Success") => json!(0),
        _ if status["reason"] == "NonZeroExitCode" => {
            status["details"]["causes"][0]["message"].clone()
        }
        _ => status["reason"].clone(),
    }
}

/// How many processes in the containers of the test's machine have this command line.
pub(crate) fn running(machine: &Machine, command: &str) -> usize {
    let wanted = command.replace(' ', "\0") + "\0";
    let is_wanted = |entry: &fs::DirEntry| {
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        // cgroups(7): each line has the path of a cgroup, which tests do not share.
        read("cmdline") == wanted && read("cgroup").contains(&machine.cgroup_parent)
    };
    fs::read_dir("/proc").unwrap().flatten().filter(is_wanted).count()
}

/// As `eventually`, within a closure that cannot await.
pub(crate) fn eventually_now(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::yield_now();
    }
}

/// How many files the daemon has open.
pub(crate) fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

pub(crate) fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}
