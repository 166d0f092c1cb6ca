//! Partial blobs: files with the first bytes of a blob whose download broke off.
//!
//! They are not synced and so not used after a reboot. Their content is verified together with the
//! rest of the blob.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use berth_shim::record::{self, Found};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

/// For smaller blobs, writing everything twice costs more than another download.
const MIN_SIZE: u64 = 32 << 20;
const CHUNK: usize = 128 << 10;

/// A partial blob. First its content is read, then more is appended.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    path: PathBuf,
    /// Bytes that an earlier attempt has left.
    pub length: u64,
    /// How many of those have not been read yet.
    unread: u64,
    /// Locked while the blob is in use. `None` once it cannot be written any more.
    file: Option<File>,
}

impl PartialBlob {
    /// Opens or creates the partial blob at `path` for a blob of `size` bytes. `None` if that is
    /// not worthwhile, another pull is writing it, or the file cannot be opened. The pull then
    /// works without it.
    pub(super) fn open(path: PathBuf, size: u64) -> Option<Self> {
        if size < MIN_SIZE {
            return None;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(&path)
            .ok()?;
        // Two pulls may download the same blob at once, for layers with different chain-ids. The
        // lock is released with the descriptor, even if the daemon is killed.
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        let mut length = file.metadata().ok()?.len();
        if length > size {
            // Left by an attempt with another size for the same digest. It cannot be continued.
            file.set_len(0).ok()?;
            length = 0;
        }
        Some(Self { path, length, unread: length, file: Some(file) })
    }

    /// Reads the next of the bytes that an earlier attempt has left. `None` at their end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = self.file.as_mut().filter(|_| self.unread > 0) else { return Ok(None) };
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.unread).unwrap_or(CHUNK))];
        file.read_exact(&mut chunk)?;
        self.unread -= chunk.len() as u64;
        Ok(Some(chunk.into()))
    }

    /// Appends what was downloaded. If that fails the pull goes on: should the disk be full, the
    /// layer itself will not fit either and will report that.
    pub(crate) fn append(&mut self, chunk: &[u8]) {
        let written = self.file.as_mut().map(|file| file.write_all(chunk));
        if let Some(Err(error)) = written {
            tracing::debug!(
                path = %self.path.display(),
                %error,
                "a partial blob is not kept: if the pull breaks off, it begins anew"
            );
            self.discard();
        }
    }

    pub(crate) fn discard(&mut self) {
        self.file = None;
        // If this fails, the next sweep removes it.
        let _ = fs::remove_file(&self.path);
    }

    /// Removes the partial blob at `path`, unless it is in use.
    pub(super) fn remove_unused(path: &Path) {
        let is_unused = match record::open(path) {
            Ok(Found::Record(file)) => {
                flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            }
            // No pull writes to what is no file.
            Ok(Found::Damaged) => true,
            Ok(Found::Absent) | Err(_) => false,
        };
        if is_unused {
            // If this fails, the next sweep tries again.
            let _ = record::remove(path);
        }
    }
}
