//! The namespaces of a container's first process: new ones by the flags of clone3(2), those of its
//! pod by setns(2).

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
};

use berth_shim::spec::{Namespace, Namespaces};
use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use crate::{
    error::{Result, Step, failure},
    process::child::start_time,
};

/// CLONE_NEW* of the new namespaces in which the process starts.
///
/// The cgroup namespace is not among them: its root is the cgroup that the process is in at that
/// moment, so it is made after the v1 controllers have been joined. Nor is a PID namespace that is
/// to be owned by a user namespace: see `user::enter_user`.
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

/// Joins the namespaces of the pod that were pinned.
pub(crate) fn join(namespaces: &Namespaces) -> Result<()> {
    enter(&namespaces.net, CloneFlags::CLONE_NEWNET)?;
    enter(&namespaces.ipc, CloneFlags::CLONE_NEWIPC)?;
    enter(&namespaces.uts, CloneFlags::CLONE_NEWUTS)
}

/// The PID namespace of other processes that the first process of the container will be in.
pub(crate) struct Joined<'a> {
    pub path: &'a Path,
    pub namespace: File,
    /// Where a /proc of it is mounted, for kernels that cannot make one from outside.
    pub proc: Option<&'a Path>,
}

impl<'a> Joined<'a> {
    /// Opens the namespace, if there is one to join. To be called while the host's files are there.
    ///
    /// # Errors
    /// Also if it is that of another container's process which has ended.
    pub(crate) fn open(namespaces: &'a Namespaces) -> Result<Option<Self>> {
        let Namespace::Join(path) = &namespaces.pid else { return Ok(None) };
        let namespace = File::open(path).step_on("open namespace", path)?;
        // The other container may have ended, and its process id may have been given to anybody's
        // process, before the file was opened. But a number that is given away never comes back to
        // its old process: if it names the right one now, it did then.
        if let Some(target) = &namespaces.target
            && start_time(Pid::from_raw(target.pid as i32))? != target.start_time
        {
            return Err(failure("the container whose processes it is to see has ended", ""));
        }
        Ok(Some(Self { path, namespace, proc: namespaces.pin_proc.as_deref() }))
    }

    /// Fails unless the process `pid` is in this namespace. Another OCI runtime is told the path,
    /// and opens it later, so it may have joined another one.
    pub(crate) fn check(&self, pid: Pid) -> Result<()> {
        let path = format!("/proc/{pid}/ns/pid");
        let found = fs::metadata(&path).step_on("stat", &path)?;
        let wanted = self.namespace.metadata().step_on("stat", self.path)?;
        if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
            return Ok(());
        }
        Err(failure("the OCI runtime joined another PID namespace than that of", self.path))
    }

    /// Puts the future children of this process into the namespace (setns(2)).
    pub(crate) fn enter(self) -> Result<()> {
        setns(self.namespace, CloneFlags::CLONE_NEWPID).step_on("join namespace", self.path)
    }
}

fn enter(namespace: &Namespace, kind: CloneFlags) -> Result<()> {
    match namespace {
        Namespace::Join(path) => enter_file(path, kind),
        Namespace::Host | Namespace::New => Ok(()),
    }
}

/// Enters the namespace of this kind that the file at `path` stands for.
pub(crate) fn enter_file(path: &Path, kind: CloneFlags) -> Result<()> {
    let file = File::open(path).step_on("open namespace", path)?;
    setns(file, kind).step_on("join namespace", path)
}

#[cfg(test)]
mod tests {
    use berth_shim::spec::Target;

    use super::*;

    #[test]
    fn a_process_id_that_was_given_to_another_process_is_not_joined() {
        let own = Pid::this();
        let mut namespaces = Namespaces {
            net: Namespace::Host,
            ipc: Namespace::Host,
            uts: Namespace::Host,
            pid: Namespace::Join(format!("/proc/{own}/ns/pid").into()),
            target: None,
            user: None,
            pin_pid: None,
            pin_proc: None,
            host_cgroup: false,
        };
        let start_time = start_time(own).unwrap();
        let pid = own.as_raw() as u32;
        for (target, joins) in [
            (None, true),
            (Some(Target { pid, start_time }), true),
            (Some(Target { pid, start_time: start_time - 1 }), false),
        ] {
            namespaces.target = target;
            assert_eq!(Joined::open(&namespaces).is_ok(), joins, "{target:?}");
        }
    }
}
