//! The files of a running container: what its own mount namespace has.

use std::{fs, os::fd::OwnedFd};

use anyhow::{Context, bail};
use berth_base::error::Error;
use berth_shim::record::Started;
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    Root, Scope,
    apart::{apart, host_proc, mount_namespace, own_mounts},
};

/// What is of the kernel or of the machine in every container. dockerd shows nothing of it either.
const HIDDEN: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Opens the files of the container whose first process is `started`. Blocks.
///
/// # Errors
/// `FailedPrecondition` if it has ended; the kernel's.
pub(super) fn open(started: &Started, scope: Scope) -> anyhow::Result<Root> {
    let process = open_process(started)?;
    match scope {
        Scope::Mounts => apart(move || copy_mounts(&process)),
        Scope::RootOnly => apart(move || clone_root(&process)),
    }
}

/// A pidfd of the first process, and of no other that has its number by now.
fn open_process(started: &Started) -> anyhow::Result<OwnedFd> {
    let ended = || Error::precondition("the container has ended");
    let pid = i32::try_from(started.pid).ok().and_then(Pid::from_raw).with_context(ended)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
    // After the descriptor: if the number is still the process' now, it was so before.
    match start_time(started.pid) {
        Some(ticks) if ticks == started.start_time => Ok(process),
        _ => bail!(ended()),
    }
}

/// When a process was started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22 of proc_pid_stat(5), counted from behind the name, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Makes `/` of this thread the root directory of the container.
fn enter(process: &OwnedFd) -> anyhow::Result<()> {
    // A thread whose root directory is that of others as well may not change its mount namespace.
    unshare(CloneFlags::CLONE_FS).context("unshare the root directory")?;
    setns(process, CloneFlags::CLONE_NEWNS).context("join the container's mount namespace")
}

fn copy_mounts(process: &OwnedFd) -> anyhow::Result<Root> {
    let host_proc = host_proc()?;
    enter(process)?;
    // A copy, so that the container's own mounts stay as they are.
    own_mounts()?;
    for path in HIDDEN {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing is mounted there.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmount {path}")),
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).context("open the container's root")?;
    Ok((root, Some(mount_namespace(&host_proc)?)))
}

/// A mount of the container's root alone, without what is mounted below it.
fn clone_root(process: &OwnedFd) -> anyhow::Result<Root> {
    enter(process)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root: Result<OwnedFd, Errno> = open_tree(CWD, "/", flags);
    Ok((root.context("clone the container's root")?, None))
}
