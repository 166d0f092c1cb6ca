//! Layers that an earlier daemon has not completed.

use std::{
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::disk::Disk;

/// How long a process that was killed may still hold its lock. The kernel releases it when it
/// closes the process' files, some time after the signal.
const LEAVING: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(5);

/// Discards the incomplete layer at `path`. Blocks.
pub(super) fn discard(disk: &Disk, path: &Path) {
    // Locked by the process that unpacks it. That was killed with its daemon, but may still be in
    // a system call that writes, and would go on to write into what is being deleted.
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let is_unused = openat(CWD, path, flags, Mode::empty()).map_or(true, is_unused);
    match is_unused {
        true => disk.discard(path),
        false => tracing::warn!(
            path = %path.display(),
            "a process that was killed still writes this: the next start deletes it"
        ),
    }
}

/// Whether the lock of the directory is free, or becomes so within `LEAVING`.
fn is_unused(directory: impl AsFd) -> bool {
    let deadline = Instant::now() + LEAVING;
    while flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return false;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "flock(2) has no timeout, and this thread may block"
        )]
        std::thread::sleep(TICK);
    }
    true
}
