//! One more process in a running container: the same credentials, other streams, and a cgroup of
//! its own.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use berth_shim::spec::{Cgroups, Process, UserNamespace};
use nix::sched::{CloneFlags, setns};

use super::{credentials, program};
use crate::{
    cgroup,
    descriptor::{self, chown_pipes},
    error::{Failure, Result, Step},
    mount::inside::open_root,
    passwd,
    process::{
        child::{Child, Exec},
        limits, successor,
    },
    stdio::child::install,
    steps::{At, begin},
    sys::Successor,
};

/// What an exec shares with its container.
pub(crate) struct Inside<'a> {
    /// A pidfd of the first process, whose namespaces it joins.
    pub init: BorrowedFd<'a>,
    pub cgroups: &'a Cgroups,
    pub user: Option<&'a UserNamespace>,
    pub filter: &'a [u8],
}

/// Forks a process that enters the container, gives up what its program may not have, and leaves
/// its place to a sibling in the container's PID namespace. So nobody there ever sees a process
/// with more privileges than the program.
pub(crate) fn start(
    inside: &Inside<'_>,
    id: &str,
    process: &Process,
    stdio: Vec<OwnedFd>,
) -> Result<Exec> {
    begin(At::ExecCgroup)?;
    let own = cgroup::create_exec(inside.cgroups, id);
    let successor = Successor::new().step("mmap")?;
    let directory: Option<File> =
        own.as_deref().or(inside.cgroups.unified.as_deref()).map(cgroup::open).transpose()?;
    begin(At::ExecClone)?;
    let (child, channel) =
        Child::fork(CloneFlags::empty(), directory.as_ref().map(AsFd::as_fd), |channel| {
            run(inside, process, stdio, channel, &successor)
        })?;
    // No later child, such as another exec, may write to the page.
    successor.keep_from_children().step("madvise")?;
    Ok(Exec {
        pid: child.pid,
        pidfd: child.pidfd,
        successor: Some(successor),
        channel: Some(channel),
        cgroup: own,
        pid_file: None,
    })
}

/// Becomes the program. Returns only a failure.
fn run(
    inside: &Inside<'_>,
    process: &Process,
    stdio: Vec<OwnedFd>,
    channel: BorrowedFd<'_>,
    place: &Successor,
) -> Failure {
    let alone = place.keep_from_children().step("madvise");
    let entered = alone.and_then(|()| enter(inside, process, stdio)).and_then(|()| {
        // By the container's own files, as they are now.
        let login = passwd::resolve(open_root()?.as_fd(), &process.user)?;
        begin(At::ExecProgram)?;
        let pass = credentials::assume(process, &login, inside.filter, channel)?;
        successor::enter_pid_namespace(process, Some(place), pass)?;
        Ok(login)
    });
    entered.map_or_else(|failure| failure, |login| program::execute(process, &login))
}

/// Joins the container's namespaces, with its streams in place.
fn enter(inside: &Inside<'_>, process: &Process, streams: Vec<OwnedFd>) -> Result<()> {
    begin(At::ExecJoin)?;
    // These write to the host's /proc and to its cgroup tree, which the container may not have.
    limits::set_oom_score_adj(process)?;
    credentials::set_label(process)?;
    cgroup::join_controllers(inside.cgroups)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        // setns(2) changes the PID namespace of future children only.
        | CloneFlags::CLONE_NEWPID;
    if let Some(user) = inside.user {
        namespaces |= CloneFlags::CLONE_NEWUSER;
        // Only root of the host can do this, which this process no longer is after setns(2).
        let pipes: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        chown_pipes(&pipes, user.root_uid, user.root_gid);
    }
    // All at once, by the pidfd: a process id could be another process' by the second call.
    setns(inside.init, namespaces).step("join the container's namespaces")?;
    // Inside, where /dev/null is the container's.
    install(process, streams.into_iter().map(descriptor::replace_null).collect::<Result<_>>()?)
}
