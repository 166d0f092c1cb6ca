//! The first process of a PID namespace that the containers of a pod share. It reaps what is left
//! to it, and ends when it is told to.
//!
//! A container that may trace others can look at it and take it over at any time. So before the
//! first container can be there, nothing may be left to find: no file of the host, no descriptor,
//! no privilege.

use std::os::fd::{AsFd, BorrowedFd};

use berth_shim::{
    record::ResolvedUser,
    spec::{Capabilities, Spec},
};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use super::credentials;
use crate::{
    cgroup,
    error::{Failure, Result, Step},
    mount::proc,
    namespaces::{join, user},
    process::channel::{self, Message},
    root::rootfs,
    seccomp,
    sys::{self, Successor},
};

/// "nobody" on every Linux distribution, who should own no file (systemd.io/UIDS-GIDS).
const NOBODY: u32 = 65_534;

/// The system calls of the loop in `wait`, and those that end a process.
const SYSCALLS: [libc::c_long; 7] = [
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_close_range,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Becomes the pause process. Returns only a failure.
pub(crate) fn run(spec: &Spec, channel: BorrowedFd<'_>, successor: &Successor) -> Failure {
    match prepare(spec, channel, successor) {
        Err(failure) => failure,
        Ok(signals) => wait(&signals),
    }
}

fn prepare(spec: &Spec, channel: BorrowedFd<'_>, successor: &Successor) -> Result<SigSet> {
    // These two are paths of the host.
    join::join(&spec.namespaces)?;
    cgroup::join_controllers(&spec.cgroups)?;
    if let Some(user) = &spec.namespaces.user {
        user::enter_user(user, &spec.namespaces.pid, successor)?;
    }
    // While this is the only process of the namespace: one that mounts /proc later from inside
    // could be traced while it still has the privileges for that.
    if spec.namespaces.pin_proc.is_some()
        && let Some(proc) = proc::for_pod()?
    {
        channel::send(channel, &Message::Proc, Some(proc.as_fd()));
    }
    // As ps(1) shows it under every other runtime. The arguments of the shim would tell the
    // containers a path of the host.
    sys::set_command_line(c"/pause").step("set the command line")?;
    prctl::set_name(c"pause").step("prctl PR_SET_NAME")?;
    rootfs::enter_empty(spec.label.as_deref())?;
    drop_privileges()?;
    // Blocked before the parent knows of this process: a signal that comes early waits for the
    // loop.
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().step("block signals")?;
    channel::send(channel, &Message::User(ResolvedUser::default()), None);
    seccomp::load(&seccomp::only(&SYSCALLS))?;
    // Ends the channel, which for a program execve(2) does, and the report pipe, which the daemon
    // reads to its end. The filter above allows this one call.
    sys::close_from(0).step("close_range")?;
    Ok(signals)
}

fn drop_privileges() -> Result<()> {
    let user = |id| ResolvedUser { uid: id, gid: id, groups: Vec::new() };
    match credentials::become_user(&user(NOBODY), Capabilities::default()) {
        // The pod's user namespace does not map that id. Root of that namespace, without any
        // capability, is no more than a user who owns files.
        Err(failure) if failure.errno == libc::EINVAL => {
            credentials::become_user(&user(0), Capabilities::default())?;
        }
        result => result?,
    }
    prctl::set_no_new_privs().step("prctl PR_SET_NO_NEW_PRIVS")
}

/// Reaps the orphans of the PID namespace until SIGTERM or SIGINT comes. As the first process of
/// it, this one would not be ended by those signals otherwise (pid_namespaces(7)).
fn wait(signals: &SigSet) -> ! {
    while let Ok(Signal::SIGCHLD) = signals.wait() {
        let reap = || waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG));
        while reap().is_ok_and(|status| status.pid().is_some()) {}
    }
    std::process::exit(0)
}
