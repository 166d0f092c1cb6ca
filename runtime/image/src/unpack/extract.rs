//! Thread two: reads the tar and creates the files of its entries.

use std::{
    cell::Cell,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    sync::mpsc::Receiver,
};

use anyhow::Context;
use berth_base::error::{Error, Result};
use rustix::fs::{Mode, OFlags, openat};
use tar::Archive;

use super::{
    contents::Extracted,
    entries::LayerWriter,
    expansion::Expansion,
    refuse::unreadable,
    sparse::{SparseCopier, TAR_BLOCK},
    tar_split::TarSplit,
};
use crate::layer_dir::FILES;

/// Limit for the headers of one entry: its names, links and extended attributes together. The tar
/// crate reads PAX and GNU headers into memory, however long they claim to be.
const MAX_HEADER: u64 = 1 << 20;

/// Implements `Read` for the buffers that arrive from the other thread.
struct TarReader<'a> {
    receiver: Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
    /// How many bytes may still be read. While a header is read, this limits how much of it the tar
    /// crate can hold in memory.
    budget: Rc<Cell<u64>>,
    tar_split: Rc<TarSplit<'a>>,
    /// Bytes that were read, including those that were added to fill the last block.
    position: Rc<Cell<u64>>,
}

impl Read for TarReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.current.read(buffer)?;
            if length > 0 {
                let left = self.budget.get().checked_sub(length as u64);
                let left = left.ok_or_else(|| io::Error::other("a header of more than 1 MiB"))?;
                self.budget.set(left);
                self.tar_split.pass(&buffer[..length]);
                self.position.update(|position| position + length as u64);
                return Ok(length);
            }
            match self.receiver.recv() {
                Ok(next) => self.current = io::Cursor::new(next),
                // No padding here: it would complete a file whose content is truncated.
                Err(_) if self.tar_split.is_in_content() => return Ok(0),
                Err(_) => return Ok(self.pad(buffer)),
            }
        }
    }
}

impl TarReader<'_> {
    /// Fills the last block with zeros. Some tools leave out this padding (umoci 0.4), and the tar
    /// crate would report a truncated tar. The zeros are not part of the digest.
    fn pad(&self, buffer: &mut [u8]) -> usize {
        let position = self.position.get();
        let missing = position.next_multiple_of(TAR_BLOCK) - position;
        let length = buffer.len().min(missing as usize);
        buffer[..length].fill(0);
        self.position.set(position + length as u64);
        length
    }
}

/// Creates the files of the tar that arrives at `receiver` below `FILES` in `directory`, and writes
/// its tar-split beside them.
///
/// # Errors
/// `FailedPrecondition` if the tar contains what a layer must not; `ResourceExhausted` if the disk
/// is full.
pub(super) fn extract(
    receiver: Receiver<Vec<u8>>,
    directory: BorrowedFd<'_>,
    expansion: &Expansion,
) -> Result<Extracted> {
    let position = Rc::new(Cell::new(0));
    let budget = Rc::new(Cell::new(MAX_HEADER));
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = openat(directory, FILES, flags, Mode::empty()).context("open the layer")?;
    let tar_split = Rc::new(TarSplit::create(directory)?);
    let mut archive = Archive::new(TarReader {
        receiver,
        current: io::Cursor::default(),
        budget: budget.clone(),
        tar_split: tar_split.clone(),
        position: position.clone(),
    });
    let sparse = SparseCopier::new(&position, expansion);
    let mut layer = LayerWriter::new(root.as_fd(), &tar_split, sparse);
    for entry in archive.entries().context("read tar")? {
        let mut entry = entry.map_err(|error| unreadable(&error))?;
        // The size of content is limited elsewhere, by `LayerWriter` and `Expansion`.
        budget.set(u64::MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        layer
            .add(&mut entry)
            .map_err(|error| Error::from(error).during(format!("tar entry {name:?}")))?;
        // Skips what is left of the content, so that the budget applies to the next header alone.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| unreadable(&error))?;
        budget.set(MAX_HEADER);
    }
    budget.set(u64::MAX);
    // Padding after the end of the archive is part of the diff-id, so the tar-split needs it too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).context("read tar")?;
    layer.set_directory_times()?;
    if let Some(length) = tar_split.finish() {
        layer.count_file(length);
    }
    Ok(layer.into_extracted())
}
