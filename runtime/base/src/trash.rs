//! Deletion that no request waits for: a rename now, the files later in a thread.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{blocking::blocking, error::ignore_not_found, id, layout::Layout};

/// Renames `path` into the trash and deletes it in a thread. Success when there is nothing.
///
/// # Errors
/// The rename failed, and `path` is still there.
pub fn discard(layout: &Layout, path: &Path) -> io::Result<()> {
    let target = layout.trash().join(id::random_hex(8));
    match blocking(|| fs::rename(path, &target)) {
        Ok(()) => {
            delete(target);
            delete_forgotten(layout);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A rename may need a block for the new name. Deleting needs none, and the caller is
        // probably here to make room.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => blocking(|| delete_now(path)),
        Err(error) => Err(error),
    }
}

fn delete_now(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Deletes what an earlier daemon has left in the trash, in threads.
///
/// # Errors
/// The trash cannot be made or listed.
pub fn empty(layout: &Layout) -> io::Result<()> {
    fs::create_dir_all(layout.trash())?;
    fs::read_dir(layout.trash())?.flatten().for_each(|entry| delete(entry.path()));
    Ok(())
}

/// Whether something is in the trash that no thread deletes.
static FORGOTTEN: AtomicBool = AtomicBool::new(false);

/// Deletes what no thread could be started for, now that one may be. What others are deleting
/// meanwhile is gone the sooner.
fn delete_forgotten(layout: &Layout) {
    if FORGOTTEN.swap(false, Ordering::Relaxed)
        && let Err(error) = blocking(|| empty(layout))
    {
        FORGOTTEN.store(true, Ordering::Relaxed);
        tracing::warn!(%error, "list the trash");
    }
}

/// How many threads are deleting.
static DELETING: Mutex<usize> = Mutex::new(0);
/// One of them has ended.
static DELETED: Condvar = Condvar::new();

fn deleting() -> MutexGuard<'static, usize> {
    DELETING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until all that was discarded has given up its room, but no longer than `limit`: a disk may
/// hang, and others may discard more all the time.
pub fn wait_until_deleted(limit: Duration) {
    let wait = DELETED.wait_timeout_while(deleting(), limit, |deleting| *deleting > 0);
    drop(wait.unwrap_or_else(PoisonError::into_inner));
}

/// Counts as a thread that deletes for as long as it lives.
struct Deletion;

impl Deletion {
    fn begin() -> Self {
        *deleting() += 1;
        Self
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        *deleting() -= 1;
        DELETED.notify_all();
    }
}

fn delete(path: PathBuf) {
    let deletion = Deletion::begin();
    let spawned = std::thread::Builder::new().name("trash".into()).spawn(move || {
        let _deletion = deletion;
        if let Err(error) = ignore_not_found(delete_now(&path)) {
            tracing::warn!(path = %path.display(), %error, "delete from the trash");
        }
    });
    if let Err(error) = spawned {
        FORGOTTEN.store(true, Ordering::Relaxed);
        tracing::warn!(%error, "start a thread that deletes from the trash");
    }
}
