//! Which namespaces the first process gets: new ones by clone flags, pinned ones by setns(2).

use std::{fs::File, path::Path};

use berth_shim::spec::{Namespace, Namespaces};
use nix::sched::{CloneFlags, setns};

use crate::error::{Result, Step};

/// CLONE_NEW* for all that is new. The cgroup namespace is not among them: its root is the cgroup of the process at that
/// moment, so it is made after the v1 controllers were joined.
pub(crate) fn clone_flags(namespaces: &Namespaces) -> CloneFlags {
    let kinds = [
        (&namespaces.net, CloneFlags::CLONE_NEWNET),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
        (&namespaces.pid, CloneFlags::CLONE_NEWPID),
    ];
    kinds
        .into_iter()
        .filter(|(namespace, _)| **namespace == Namespace::New)
        .fold(CloneFlags::CLONE_NEWNS, |flags, (_, flag)| flags | flag)
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
