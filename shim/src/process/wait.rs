//! Waiting for a process or a descriptor, within a limit.

use std::{
    os::fd::{AsFd, BorrowedFd},
    process::Child,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::error::{Result, Step};

/// How often `ends_within` calls `waiting`. The daemon gives up a launch whose stage does not
/// change for 30 s, so it has to be several times as often.
const TICK: Duration = Duration::from_secs(5);

/// Whether `child` ends within `limit`. `waiting` is called every few seconds, with the time that
/// has passed.
pub(crate) fn ends_within(
    child: &Child,
    limit: Duration,
    waiting: impl Fn(Duration),
) -> Result<bool> {
    let pid = Pid::from_raw(child.id() as i32).ok_or(Errno::SRCH).step("pidfd_open")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).step("pidfd_open")?;
    let begun = Instant::now();
    loop {
        waiting(begun.elapsed());
        let Some(left) = limit.checked_sub(begun.elapsed()) else { return Ok(false) };
        if is_ready(pidfd.as_fd(), left.min(TICK))? {
            return Ok(true);
        }
    }
}

/// Whether `fd` becomes readable within `limit`, which for a pidfd means that its process has
/// ended. May return false too early; limits above 65 s are cut.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], milliseconds.max(1)) {
        // Callers ask again until their own limit has passed.
        Err(nix::errno::Errno::EINTR) => Ok(false),
        result => result.step("poll").map(|ready| ready > 0),
    }
}
