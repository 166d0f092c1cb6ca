//! One more process in a running container: the same credentials code, other descriptors, a cgroup of its own.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::{Cgroups, Process, UserNamespace};
use nix::{
    sched::{CloneFlags, setns},
    unistd::{Pid, setsid},
};
use rustix::fs::OFlags;

use crate::{
    cgroup, credentials,
    error::{Failure, Result, Step, failure},
    init::{self, Message},
    passwd, rootfs, stdio, sys,
    sys::Fork,
};

/// An exec whose process was forked.
pub(crate) struct Exec {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// Tells whether the program ran; gone once it has told.
    pub channel: Option<OwnedFd>,
    /// Its own part of the v2 tree.
    pub cgroup: Option<PathBuf>,
    /// Where the number of the process is that `pid` only stands in front of.
    pub behind: Option<PathBuf>,
}

/// What an exec shares with its container.
pub(crate) struct Inside<'a> {
    pub init: BorrowedFd<'a>,
    pub cgroups: &'a Cgroups,
    pub user: Option<&'a UserNamespace>,
    pub filter: &'a [u8],
}

/// # Errors
/// Not as many descriptors came along as `process` needs.
pub(crate) fn check(process: &Process, stdio: &[OwnedFd]) -> Result<()> {
    let wanted = if process.tty { 1 } else { 3 };
    if stdio.len() == wanted {
        return Ok(());
    }
    Err(failure(format!("exec wants {wanted} descriptors, got {}", stdio.len()), ""))
}

/// Forks into the container. The monitor is in the container's PID namespace for children already, so one fork is enough.
pub(crate) fn start(inside: &Inside<'_>, id: &str, process: &Process, stdio: Vec<OwnedFd>) -> Result<Exec> {
    let (ours, theirs) = init::channel()?;
    let own = cgroup::create_exec(inside.cgroups, id);
    let directory: Option<File> = own.as_deref().or(inside.cgroups.unified.as_deref()).map(cgroup::open).transpose()?;
    match sys::clone3(0, directory.as_ref().map(AsFd::as_fd)).step("fork into the container")? {
        Fork::Child => {
            drop(ours);
            let failure = run(inside, process, stdio);
            init::send(theirs.as_fd(), &Message::Failed(failure), None);
            std::process::exit(1)
        }
        Fork::Parent { pid, pidfd } => Ok(Exec { pid, pidfd, channel: Some(ours), cgroup: own, behind: None }),
    }
}

fn run(inside: &Inside<'_>, process: &Process, stdio: Vec<OwnedFd>) -> Failure {
    let entered = enter(inside, process, stdio).and_then(|()| {
        let root = rootfs::open_path(Path::new("/"), OFlags::DIRECTORY).step_on("open", "/")?;
        passwd::resolve(root.as_fd(), &process.user)
    });
    match entered {
        Ok(login) => credentials::execute(process, &login, inside.filter),
        Err(failure) => failure,
    }
}

fn enter(inside: &Inside<'_>, process: &Process, streams: Vec<OwnedFd>) -> Result<()> {
    setsid().step("setsid")?;
    credentials::set_oom_score_adj(process)?;
    credentials::set_label(process)?;
    cgroup::join_controllers(inside.cgroups)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if let Some(user) = inside.user {
        namespaces |= CloneFlags::CLONE_NEWUSER;
        let pipes: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        stdio::give(&pipes, user.root_uid, user.root_gid);
    }
    setns(inside.init, namespaces).step("join the container's namespaces")?;
    install(process, streams)
}

/// Makes `streams` the standard ones of this process.
pub(crate) fn install(process: &Process, streams: Vec<OwnedFd>) -> Result<()> {
    if process.tty {
        return streams.into_iter().try_for_each(init::take_terminal);
    }
    for (number, fd) in (0..).zip(streams) {
        sys::replace_stdio(fd, number).step("install stdio")?;
    }
    Ok(())
}
