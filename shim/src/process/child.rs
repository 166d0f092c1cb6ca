//! Children of the monitor: the container's first process, and execs.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use nix::{sched::CloneFlags, unistd::Pid};
use rustix::process::{self, PidfdFlags, pidfd_open};

use crate::{
    error::{Failure, Result, Step, failure},
    process::channel::{self, Message},
    sys::{self, Fork, Successor},
};

/// A child that has not been waited for, so its number is not given to another process.
pub(crate) struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

impl Child {
    /// Forks with the CLONE_NEW* of `flags`, into the `cgroup` directory of the v2 tree. `body` is
    /// what the child does: it becomes a program, or returns its failure, which is sent to the
    /// parent. Returns the child, and the channel on which its messages arrive.
    pub(crate) fn fork(
        flags: CloneFlags,
        cgroup: Option<BorrowedFd<'_>>,
        body: impl FnOnce(BorrowedFd<'_>) -> Failure,
    ) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = channel::pair()?;
        match sys::clone3(flags.bits(), cgroup).step("clone3")? {
            Fork::Child => {
                // As long as this process had a copy of the parent's end, it would never notice
                // that the parent was killed.
                drop(ours);
                let failure = body(theirs.as_fd());
                channel::send(theirs.as_fd(), &Message::Failed(failure), None);
                std::process::exit(1)
            }
            Fork::Parent { pid, pidfd } => Ok((Self { pid, pidfd }, ours)),
        }
    }

    /// Opens a child by its number. It must not have been waited for.
    pub(crate) fn open(pid: Pid) -> Result<Self> {
        let raw =
            process::Pid::from_raw(pid.as_raw()).ok_or_else(|| failure("not a process id", ""))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).step("pidfd_open")?;
        Ok(Self { pid, pidfd })
    }
}

/// When a process started, in clock ticks since boot, as in `record::Started`.
pub(crate) fn start_time(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).step_on("read", &path)?;
    // Field 22 of proc_pid_stat(5). The command name in field 2 may hold anything, also parentheses
    // and spaces, so fields are counted from behind it.
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| failure("no start time in", &path))
}

/// An exec whose process was forked.
pub(crate) struct Exec {
    /// The process that was forked, or its sibling once that has taken its place.
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// Where the forked process notes the sibling that will run the program. Absent if another OCI
    /// runtime makes the exec.
    pub successor: Option<Successor>,
    /// Its messages; taken once it has said whether the program runs.
    pub channel: Option<OwnedFd>,
    /// Its own directory in the v2 tree, if there is one: SIGKILL then reaches its descendants.
    pub cgroup: Option<PathBuf>,
    /// The file in which another OCI runtime has written the number of the program, for which `pid`
    /// only passes streams on.
    pub pid_file: Option<PathBuf>,
}

impl Exec {
    /// The number of the program, or of the process that prepares it as long as it does.
    pub(crate) fn current_pid(&self) -> Pid {
        self.successor.as_ref().and_then(Successor::pid).unwrap_or(self.pid)
    }

    /// Whether `pid` is that of the program or of the process that prepares it.
    pub(crate) fn is(&self, pid: Pid) -> bool {
        self.pid == pid || self.current_pid() == pid
    }

    /// Sends a signal to the program, or to the process that prepares it.
    ///
    /// # Errors
    /// ESRCH if it has ended.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let successor = self.successor.as_ref().and_then(Successor::pid);
        match successor.and_then(|pid| process::Pid::from_raw(pid.as_raw())) {
            // A child that this process has not waited for, so the number is still its own.
            Some(pid) => {
                sys::pidfd_send_signal(pidfd_open(pid, PidfdFlags::empty())?.as_fd(), signal)
            }
            None => sys::pidfd_send_signal(self.pidfd.as_fd(), signal),
        }
    }
}
