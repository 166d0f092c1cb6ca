//! The locks of flock(2) that tell whether a shim lives: the kernel releases them at its end,
//! whatever ends it.

use std::{fs, io, path::Path, time::Duration};

use anyhow::Context;
use berth_base::blocking::blocking;
use berth_shim::{
    layout,
    record::{self, Found},
};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

/// How often a lock is tried. A flock(2) that waits cannot be given up, and would hold a thread for
/// as long as a shim hangs.
const TICK: Duration = Duration::from_millis(2);
/// How long a pin whose daemon is gone may still take.
const PINNING: Duration = Duration::from_secs(10);

/// Whether a shim keeps the container of `dir`: it holds the lock for as long as it lives.
///
/// # Errors
/// Something else is in the lock's place, so nobody knows.
pub fn is_alive(dir: &Path) -> io::Result<bool> {
    match blocking(|| record::open(&dir.join(layout::LOCK)))? {
        // A shared lock: others who ask at this moment must not take this one for a shim's.
        Found::Record(file) => Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
        Found::Absent => Ok(false),
        Found::Damaged => {
            Err(io::Error::other(format!("{} in {} is not a file", layout::LOCK, dir.display())))
        }
    }
}

/// Whether no shim holds the lock of `dir`, now or within `limit`.
///
/// # Errors
/// As `is_alive`.
pub async fn ends_within(dir: &Path, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    while is_alive(dir)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(true)
}

/// Waits for a pin of the pod of `dir` that has outlived its daemon, and keeps others from
/// beginning for as long as the file lives that this returns. `None` if the pod was never pinned.
///
/// # Errors
/// Also if the pin does not end in time.
pub async fn claim_pin(dir: &Path) -> anyhow::Result<Option<fs::File>> {
    let path = dir.join(layout::PIN);
    let Found::Record(file) =
        blocking(|| record::open(&path)).with_context(|| format!("open {}", path.display()))?
    else {
        return Ok(None);
    };
    let deadline = Instant::now() + PINNING;
    while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if Instant::now() >= deadline {
            return Err(errno).with_context(|| {
                format!("a process that makes namespaces holds {}", path.display())
            });
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(Some(file))
}
