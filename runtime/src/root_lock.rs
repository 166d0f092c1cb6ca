//! The lock of a root directory: two daemons on one root would each undo what the other one does.
//!
//! It is a record lock of fcntl(2). That belongs to the process, and the kernel releases it when
//! the last thread of the daemon has ended, whatever ends it. A lock of flock(2) belongs to the
//! open file. A child that has been forked and has not called execve(2) yet has that too, and it
//! outlives a daemon that is killed: for long, if the program is on a filesystem that does not
//! answer.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use berth_base::layout::Layout;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, fcntl_lock, flock},
    io::{self, Errno},
    process::{FlockType, Pid, fcntl_getlk},
};

/// How long a daemon that was killed may still hold the lock: its memory is freed first, and a
/// thread may be in a system call that no signal interrupts, as syncfs(2).
const LEAVING: Duration = Duration::from_secs(5);
/// After this time of waiting the log says for whom.
const QUIET: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(5);

/// The lock, for as long as the process lives.
#[derive(Debug)]
pub(crate) struct RootLock {
    /// A process loses its record locks on a file with the first descriptor of it that it closes
    /// (fcntl(2)), so nothing else in the daemon opens this one.
    _file: OwnedFd,
}

/// Who holds the lock. The process is not known if it is in another PID namespace, or only just
/// about to take the lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder(Option<Pid>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process that cannot be seen from here"),
        }
    }
}

impl RootLock {
    /// Takes the lock. Waits for a daemon that is ending, and says so.
    ///
    /// # Errors
    /// Another daemon keeps it.
    pub(crate) fn take(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.lock();
        let root = layout.root.display();
        // Read-only: a descriptor that is open for writing would keep the file system from being
        // remounted read-only.
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let shown = path.display();
        // Not replaced: whether another berthd uses the root could not be told any more.
        if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{shown} is not a file: stop any berthd that runs, and remove it");
        }
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .with_context(|| format!("open {shown}: look at its disk (dmesg)"))?;
        let begun = Instant::now();
        let mut silent = true;
        while let Err(holder) =
            try_take(&file).with_context(|| format!("lock {}", path.display()))?
        {
            if begun.elapsed() >= LEAVING {
                bail!("another berthd uses {root} ({holder}): stop it, or choose another --root");
            }
            if silent && begun.elapsed() >= QUIET {
                silent = false;
                tracing::warn!(
                    "another berthd uses {root} ({holder}): waiting for its end, {} s at most",
                    LEAVING.as_secs()
                );
            }
            #[expect(clippy::disallowed_methods, reason = "nothing else runs yet")]
            std::thread::sleep(TICK);
        }
        Ok(Self { _file: file })
    }
}

/// Takes the lock, or says who has it.
fn try_take(file: &OwnedFd) -> io::Result<Result<(), Holder>> {
    // A descriptor without write access can have shared record locks only. So those who start take
    // turns, by a lock of flock(2): no other daemon comes between the look and the lock.
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(Err(Holder(None))),
        locked => locked?,
    }
    let taken = match holder(file)? {
        Some(holder) => Err(holder),
        None => Ok(fcntl_lock(file, FlockOperation::NonBlockingLockShared)?),
    };
    flock(file, FlockOperation::Unlock)?;
    Ok(taken)
}

/// Which other process holds the lock.
///
/// # Errors
/// The file system has no locks.
pub(crate) fn holder(file: impl AsFd) -> io::Result<Option<Holder>> {
    // Who would be in the way of an exclusive lock.
    Ok(fcntl_getlk(file, &FlockType::WriteLock.into())?.map(|lock| Holder(lock.pid)))
}
