//! Which namespaces the first process gets: new ones by clone flags, pinned ones by setns(2).

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use berth_shim::spec::{Namespace, Namespaces, UserNamespace};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use crate::{
    error::{Result, Step},
    init::{self, Message},
    sys::{self, Fork},
};

/// CLONE_NEW* for all that is new. The cgroup namespace is not among them: its root is the cgroup of the process at that
/// moment, so it is made after the v1 controllers were joined. Nor is a PID namespace that a user namespace is to own.
pub(crate) fn clone_flags(namespaces: &Namespaces) -> CloneFlags {
    let kinds = [
        (&namespaces.net, CloneFlags::CLONE_NEWNET),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
        (&namespaces.pid, CloneFlags::CLONE_NEWPID),
    ];
    let flags = kinds
        .into_iter()
        .filter(|(namespace, _)| **namespace == Namespace::New)
        .fold(CloneFlags::CLONE_NEWNS, |flags, (_, flag)| flags | flag);
    if namespaces.user.is_some() { flags - CloneFlags::CLONE_NEWPID } else { flags }
}

/// Joins the pins of the pod. In the first process itself, before anything else.
pub(crate) fn join(namespaces: &Namespaces) -> Result<()> {
    enter(&namespaces.net, CloneFlags::CLONE_NEWNET)?;
    enter(&namespaces.ipc, CloneFlags::CLONE_NEWIPC)?;
    enter(&namespaces.uts, CloneFlags::CLONE_NEWUTS)
}

/// A process cannot change its own PID namespace, only that of its children: called by the monitor before it forks.
pub(crate) fn join_pid(namespaces: &Namespaces) -> Result<()> {
    enter(&namespaces.pid, CloneFlags::CLONE_NEWPID)
}

fn enter(namespace: &Namespace, kind: CloneFlags) -> Result<()> {
    match namespace {
        Namespace::Join(path) => enter_file(path, kind),
        Namespace::Host | Namespace::New => Ok(()),
    }
}

fn enter_file(path: &Path, kind: CloneFlags) -> Result<()> {
    let file = File::open(path).step_on("open namespace", path)?;
    setns(file, kind).step_on("join namespace", path)
}

/// A pod's user namespace, for mounts that show owners through it.
pub(crate) struct Idmap {
    pub namespace: File,
    /// Who its root is on the host.
    pub uid: u32,
    pub gid: u32,
}

impl Idmap {
    pub(crate) fn open(user: &UserNamespace) -> Result<Self> {
        let namespace = File::open(&user.path).step_on("open namespace", &user.path)?;
        Ok(Self { namespace, uid: user.root_uid, gid: user.root_gid })
    }
}

/// Becomes root of the pod's user namespace, with a mount namespace that it owns. A new PID namespace is to be owned by it too, so
/// it is made only here: this process' place is taken by a sibling, of which the monitor is told through `channel`.
pub(crate) fn enter_user(user: &UserNamespace, pid: &Namespace, channel: BorrowedFd<'_>) -> Result<()> {
    enter_file(&user.path, CloneFlags::CLONE_NEWUSER)?;
    setgroups(&[]).step("setgroups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).step("setresgid")?;
    setresuid(uid, uid, uid).step("setresuid")?;
    unshare(CloneFlags::CLONE_NEWNS).step("unshare the mount namespace")?;
    if *pid == Namespace::New {
        let flags = libc::CLONE_PARENT | CloneFlags::CLONE_NEWPID.bits();
        if let Fork::Parent { pid, pidfd } = sys::clone3(flags, None).step("clone3 in the user namespace")? {
            init::send(channel, &Message::Init(pid.as_raw()), Some(pidfd.as_fd()));
            std::process::exit(0);
        }
    }
    Ok(())
}
