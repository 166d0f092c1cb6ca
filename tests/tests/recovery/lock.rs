//! The lock of the root: a start waits for the end of a daemon that was killed, says for whom, and
//! waits for nobody else.

use std::fs::File;

use berth_tests::{Capability, Machine, eventually, pod, skip_without};
use nix::{
    fcntl::{AT_FDCWD, FcntlArg, fcntl},
    libc,
    sys::{
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
        signal::Signal,
    },
};
use serde_json::json;

#[tokio::test]
async fn a_lock_that_a_killed_daemon_still_has_is_waited_for() {
    let machine = Machine::new();
    machine.start().await.kill();
    // This process in the place of the one that was killed.
    let lock = File::open(machine.path("root/lock")).unwrap();
    let whole = libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_SETLK(&whole)).unwrap();
    let (daemon, cri) = machine.launch(&[]);
    let said = format!("(process {}): waiting for its end", std::process::id());
    eventually("the daemon at the lock", async || daemon.log().contains(&said)).await;
    drop(lock);
    cri.serving().await.unwrap();
}

#[tokio::test]
async fn a_child_that_has_not_begun_its_program_keeps_no_lock_of_a_killed_daemon() {
    if skip_without(Capability::ExecPermissions) {
        return;
    }
    let machine = Machine::new();
    machine.write_plugin("slow", "echo '{}'");
    machine.write_network(
        &json!({ "cniVersion": "1.1.0", "name": "slow", "plugins": [{ "type": "slow" }] }),
    );
    let daemon = machine.start().await;
    // The kernel asks here before it executes the plugin, and waits for the answer.
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLOEXEC;
    let watch = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
    let plugin = machine.path("cni-bin/slow");
    watch
        .mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_EXEC_PERM, AT_FDCWD, Some(&plugin))
        .unwrap();
    let cri = daemon.cri();
    let run = tokio::spawn({
        let (cri, config) = (cri.clone(), pod(&machine, "slow"));
        async move { cri.run_pod(config).await }
    });
    let mut asked = Vec::new();
    eventually("a child before its program", async || {
        asked.extend(watch.read_events().unwrap_or_default());
        !asked.is_empty()
    })
    .await;
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    // The child has the daemon's sockets too: a client of the old one waits, and a new client has to
    // wait for the new one.
    run.abort();
    let (daemon, cri) = machine.launch(&[]);
    let starts = || daemon.log().matches("serving CRI v1").count();
    eventually("the next daemon serves", async || starts() == 2).await;
    cri.serving().await.unwrap();
    // Lets the child and the DEL of the pod go on.
    drop((asked, watch));
    machine.assert_clean().await;
}
