//! Work in a mount namespace of its own.

use std::{os::fd::OwnedFd, thread};

use anyhow::{Context, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Runs `work` in a thread that ends afterwards: what it changes of its namespaces and of its root
/// directory holds for no other work of the daemon. Nothing but system calls runs in it, and so no
/// code of a container (CVE-2019-14271).
pub(super) fn apart<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let thread = thread::Builder::new().name("files".to_owned()).spawn(work);
    let done = thread.context("start a thread")?.join();
    done.map_err(|_| anyhow!("the thread that mounts a container's files has failed"))?
}

/// Gives this thread a copy of its mount namespace, whose mounts are nobody's peers: what is changed
/// in it is seen nowhere else.
pub(super) fn own_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / private")
}

/// The host's /proc, by which a thread finds itself wherever its root directory is.
pub(super) fn host_proc() -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, "/proc", flags, Mode::empty()).context("open /proc")
}

/// The mount namespace of this thread, which exists for as long as this is open.
pub(super) fn mount_namespace(host_proc: &OwnedFd) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(host_proc, "thread-self/ns/mnt", flags, Mode::empty())
        .context("open the mount namespace")
}
