//! Room for what must be written when the disk is full.
//!
//! The kubelet makes room on a full disk by stopping pods and removing images, and each of these
//! writes something: that a pod is stopped, how a container ended, which images are left. For that,
//! a file of a few megabytes is kept. It is made shorter when such a record finds no room, and
//! whole again as soon as there is room. A record that could not be written all the same is true in
//! memory until then.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_shim::record::{self, Found};
use nix::errno::Errno;
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::{blocking::blocking, layout::Layout};

/// Several times the image index of a node with a thousand images, which is the largest record.
const SIZE: u64 = 4 << 20;
/// How much is given up for one record. That is more than most need, because the
/// process that filled the disk takes some of it too.
const CHUNK: u64 = 256 << 10;
/// The pause between two attempts to write. Nothing tells when a disk has room again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    /// Records that are true and not written yet, by path.
    pending: Mutex<BTreeMap<PathBuf, Value>>,
    /// Wakes the task that refills the reserve and writes what is pending.
    wanted: Notify,
}

impl Reserve {
    /// Makes the reserve, or waits in a task for the room that it needs.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(layout: &Layout) -> Arc<Self> {
        let reserve = Arc::new(Self {
            path: layout.reserve(),
            pending: Mutex::default(),
            wanted: Notify::new(),
        });
        if !blocking(|| reserve.is_filled()) {
            reserve.wanted.notify_one();
        }
        tokio::spawn(reserve.clone().keep());
        reserve
    }

    /// Runs `write`, and as long as that fails because the disk is full, gives up a chunk of the
    /// reserve and runs it again.
    ///
    /// # Errors
    /// Those of `write`; that the disk is full once the reserve is used up.
    pub fn with_room<T>(&self, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match write() {
                Err(error) if is_full(&error) && self.give_up() => {}
                result => return result,
            }
        }
    }

    /// Writes a record that must not be lost: now, or in the background as soon as that is
    /// possible. Returns whether it is on the disk.
    pub fn write<T: Serialize>(&self, path: &Path, record: &T) -> bool {
        let written = self.with_room(|| record::write_durable(path, record));
        let Err(error) = written else { return true };
        tracing::warn!(path = %path.display(), "{error}: kept in memory, to be written later");
        match serde_json::to_value(record) {
            Ok(value) => drop(self.pending().insert(path.to_owned(), value)),
            Err(error) => tracing::error!(path = %path.display(), "not a record: {error}"),
        }
        self.wanted.notify_one();
        false
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Value>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the reserve shorter by a chunk. False if there is nothing left of it.
    fn give_up(&self) -> bool {
        // Without the reserve there is nothing to give up, as on a disk that was full at the start.
        let Ok(Found::Record(_)) = record::open(&self.path) else { return false };
        let Ok(file) = File::options().write(true).open(&self.path) else { return false };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let left = length.saturating_sub(CHUNK);
        // A truncation needs no free block.
        if length == 0 || file.set_len(left).is_err() {
            return false;
        }
        let path = self.path.display();
        tracing::warn!(%path, left, "the disk is full: a chunk of the reserve is given up");
        self.wanted.notify_one();
        true
    }

    /// Refills the reserve and writes what is pending, whenever that is wanted.
    async fn keep(self: Arc<Self>) {
        loop {
            self.wanted.notified().await;
            // The records first: they are what the reserve is for.
            while !blocking(|| self.write_pending() && self.is_filled()) {
                tokio::time::sleep(RETRY).await;
            }
            let path = self.path.display();
            tracing::info!(%path, "the disk has room again, and the reserve is whole");
        }
    }

    /// Whether nothing is pending any more.
    fn write_pending(&self) -> bool {
        // A copy, so that the lock is not held while the disk is waited for.
        let pending = self.pending().clone();
        for (path, record) in pending {
            // The object of a record may have been removed meanwhile.
            let is_gone = !path.parent().is_some_and(Path::exists);
            if is_gone || record::write_durable(&path, &record).is_ok() {
                self.pending().remove(&path);
            }
        }
        self.pending().is_empty()
    }

    /// Whether the reserve is whole, after an attempt to make it so.
    fn is_filled(&self) -> bool {
        let is_whole = |metadata: fs::Metadata| metadata.is_file() && metadata.len() == SIZE;
        if fs::symlink_metadata(&self.path).is_ok_and(is_whole) {
            return true;
        }
        let filled = self.fill();
        if let Err(error) = &filled {
            tracing::debug!(path = %self.path.display(), "the reserve is not whole: {error}");
        }
        filled.is_ok()
    }

    /// Allocates the whole file, or leaves it as it was.
    fn fill(&self) -> io::Result<()> {
        if matches!(record::open(&self.path)?, Found::Damaged) {
            record::remove(&self.path)?;
        }
        let file = File::options().write(true).create(true).truncate(false).open(&self.path)?;
        all_or_nothing(&file, |mut file| {
            match fallocate(file, FallocateFlags::empty(), 0, SIZE) {
                // Some filesystems cannot allocate without writing.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    io::copy(&mut io::repeat(0).take(SIZE), &mut file).map(drop)
                }
                result => Ok(result?),
            }
        })
    }
}

/// Runs `grow` and gives back what it took if it fails.
///
/// fallocate(2) and write(2) keep the blocks that they got before the disk was full, and both make
/// the file longer as they go (ext4 does, tmpfs does not). The keeper tries every second: without
/// this it would take every block that is freed on a full disk, and give nothing back.
fn all_or_nothing(file: &File, grow: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let grown = grow(file);
    if grown.is_err() {
        file.set_len(length)?;
    }
    grown
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_filled_keeps_no_block_that_it_got() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("reserve")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, CHUNK).unwrap();
        let before = file.metadata().unwrap();
        // As on a disk that is full half way.
        let filled = all_or_nothing(&file, |file| {
            fallocate(file, FallocateFlags::empty(), 0, SIZE / 2)?;
            Err(Errno::ENOSPC.into())
        });
        assert!(is_full(&filled.unwrap_err()));
        let after = file.metadata().unwrap();
        assert_eq!((after.len(), after.blocks()), (before.len(), before.blocks()));
        assert!(all_or_nothing(&file, |file| file.set_len(SIZE)).is_ok());
        assert_eq!(file.metadata().unwrap().len(), SIZE);
    }
}
