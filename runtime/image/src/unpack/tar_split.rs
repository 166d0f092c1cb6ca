//! Tar-split: everything in a layer's tar that is not the content of a file. It is stored beside
//! the files, so that the tar can be reassembled bit for bit, to verify that the files are what was
//! pulled, and to export the layer. Name and idea are from github.com/vbatts/tar-split, which
//! Docker uses for the same purpose; the format is berth's own.
//!
//! The file is a zstd stream of records. All numbers are little-endian. Lengths of paths and of tar
//! bytes are `u32`, lengths and offsets of files are `u64`:
//!
//! | record | fields | stands for |
//! |---|---|---|
//! | `0` | length, bytes | bytes of the tar: headers, padding, the end of the archive |
//! | `1` | length of path, path, length | the content of a file |
//! | `2` | length of path, path, length of the file, offset, length | a segment of a sparse file |

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::Write,
    ops::Range,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::Path,
};

use anyhow::Context;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use super::sparse::Written;
use crate::layer_dir::TAR_SPLIT;

/// The first byte of a record.
pub(super) const RAW: u8 = 0;
pub(super) const FILE: u8 = 1;
pub(super) const SEGMENT: u8 = 2;

/// Tar bytes are gathered into records of about this size.
const GATHERED: usize = 64 << 10;
/// A fast compression level. Headers consist mostly of zeros, which every level compresses well.
const LEVEL: i32 = 1;

/// Records a tar while it is read. If the tar cannot be reassembled, or the disk is full, only the
/// recording ends: the layer can still be used, but neither verified nor exported.
///
/// Cells, because the object that reads the tar and the one that writes the files share this, in
/// the same thread.
pub(super) struct TarSplit<'a> {
    /// Where its file is.
    directory: BorrowedFd<'a>,
    /// Whether the bytes that are read are content of a file, which is not recorded.
    in_content: Cell<bool>,
    raw: RefCell<Vec<u8>>,
    /// `None` once recording has ended.
    out: RefCell<Option<zstd::Encoder<'static, File>>>,
}

impl<'a> TarSplit<'a> {
    pub(super) fn create(directory: BorrowedFd<'a>) -> anyhow::Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(directory, TAR_SPLIT, flags, Mode::from_raw_mode(0o644))
            .with_context(|| format!("make {TAR_SPLIT}"))?;
        let encoder = zstd::Encoder::new(File::from(file), LEVEL).context("zstd")?;
        Ok(Self {
            directory,
            in_content: Cell::new(false),
            raw: RefCell::default(),
            out: RefCell::new(Some(encoder)),
        })
    }

    /// Records bytes of the tar, unless they are content of a file.
    pub(super) fn pass(&self, bytes: &[u8]) {
        if self.in_content.get() || self.out.borrow().is_none() {
            return;
        }
        // Gathered, so that the headers of many empty files become one record.
        self.raw.borrow_mut().extend_from_slice(bytes);
        if self.raw.borrow().len() >= GATHERED {
            self.flush();
        }
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.in_content.get()
    }

    /// Runs `work`, which reads the content of the file `path` and returns its length.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn file(
        &self,
        path: &Path,
        work: impl FnOnce() -> anyhow::Result<u64>,
    ) -> anyhow::Result<u64> {
        let length = self.content(work)?;
        self.write_record(FILE, path, &length.to_le_bytes());
        Ok(length)
    }

    /// Runs `work`, which reads the data of the sparse file `path`.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn sparse_file(
        &self,
        path: &Path,
        work: impl FnOnce() -> anyhow::Result<Written>,
    ) -> anyhow::Result<Written> {
        let written = self.content(work)?;
        for Range { start, end } in &written.data {
            let numbers = [written.length, *start, end - start].map(u64::to_le_bytes).concat();
            self.write_record(SEGMENT, path, &numbers);
        }
        Ok(written)
    }

    fn content<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.in_content.set(true);
        let result = work();
        self.in_content.set(false);
        let result = result?;
        // The headers before the content have to be recorded before it.
        self.flush();
        Ok(result)
    }

    /// Ends the recording and removes the file, because the tar cannot be reassembled any more.
    pub(super) fn end(&self) {
        *self.out.borrow_mut() = None;
        // If this fails, the file is incomplete, and a check reports the layer as damaged. That is
        // wrong, but safe.
        let _ = unlinkat(self.directory, TAR_SPLIT, AtFlags::empty());
    }

    /// Completes the file and returns its size. `None` if the recording has ended.
    pub(super) fn finish(&self) -> Option<u64> {
        self.flush();
        let out = self.out.borrow_mut().take()?;
        match out.finish().and_then(|file| file.metadata()) {
            Ok(metadata) => Some(metadata.len()),
            Err(_) => {
                self.end();
                None
            }
        }
    }

    fn flush(&self) {
        let raw = std::mem::take(&mut *self.raw.borrow_mut());
        if !raw.is_empty() {
            // Fits into u32: at most `GATHERED` plus one buffer.
            self.write(&[&[RAW], &(raw.len() as u32).to_le_bytes(), &raw]);
        }
    }

    fn write_record(&self, tag: u8, path: &Path, numbers: &[u8]) {
        let path = path.as_os_str().as_bytes();
        self.write(&[&[tag], &(path.len() as u32).to_le_bytes(), path, numbers]);
    }

    fn write(&self, parts: &[&[u8]]) {
        let written = match &mut *self.out.borrow_mut() {
            Some(out) => parts.iter().try_for_each(|part| out.write_all(part)),
            None => Ok(()),
        };
        if written.is_err() {
            self.end();
        }
    }
}
