//! User namespaces: made for a pod, and entered by its containers.

use std::{fs, os::fd::OwnedFd};

use berth_shim::spec::{IdMapping, Namespace, UserNamespace};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid},
};

use super::join::enter_file;
use crate::{
    error::{Result, Step},
    process::{channel, successor::fork_successor},
    seccomp::Pass,
    sys::{self, Fork, Successor},
};

/// A process that holds new namespaces. It ends when this is dropped.
pub(crate) struct Holder {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    _alive: OwnedFd,
}

/// Makes a user namespace, and those of `flags` in it, in a child: a process that enters a user
/// namespace loses its privileges outside for good.
pub(crate) fn user_namespace(
    (uids, gids): (IdMapping, IdMapping),
    flags: CloneFlags,
) -> Result<Holder> {
    let (ours, theirs) = channel::pair()?;
    match sys::clone3((flags | CloneFlags::CLONE_NEWUSER).bits(), None)
        .step("make a user namespace")?
    {
        Fork::Child => {
            drop(ours);
            // Returns when the parent has closed its end, or was killed.
            let _ = rustix::io::read(&theirs, &mut [0]);
            std::process::exit(0)
        }
        Fork::Parent { pid, pidfd } => {
            // From outside, because inside only single ids of one's own could be mapped
            // (user_namespaces(7)).
            for (file, ids) in [("uid_map", uids), ("gid_map", gids)] {
                let path = format!("/proc/{pid}/{file}");
                fs::write(&path, format!("0 {} {}", ids.host, ids.length))
                    .step_on("map the ids of the pod in", &path)?;
            }
            Ok(Holder { pid, pidfd, _alive: ours })
        }
    }
}

/// Becomes root of the pod's user namespace, with a mount namespace that belongs to it. A new PID
/// namespace has to belong to it as well, so it is made only here, for the `successor`.
pub(crate) fn enter_user(
    user: &UserNamespace,
    pid: &Namespace,
    successor: &Successor,
) -> Result<()> {
    enter_file(&user.path, CloneFlags::CLONE_NEWUSER)?;
    // The process still has the host's ids and groups. Those are not mapped inside, so the kernel
    // refuses to make a file for it there (EOVERFLOW).
    setgroups(&[]).step("setgroups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).step("setresgid")?;
    setresuid(uid, uid, uid).step("setresuid")?;
    // Mounting takes CAP_SYS_ADMIN in the user namespace that owns the mount namespace. The copy
    // that this makes has the host's mounts locked together (mount_namespaces(7)).
    unshare(CloneFlags::CLONE_NEWNS).step("unshare the mount namespace")?;
    match pid {
        // No filter is loaded yet, so no pass is needed.
        Namespace::New => fork_successor(successor, CloneFlags::CLONE_NEWPID, Pass::default()),
        Namespace::Host | Namespace::Join(_) => Ok(()),
    }
}
