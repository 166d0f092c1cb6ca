//! Reads the content of a tar: in bounds, and without filling the holes of files.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    rc::Rc,
};

use anyhow::Context;

/// Bytes that are read at once, and in which zeros become a hole.
const BLOCK: usize = 64 << 10;

/// Copies the content of a file. Blocks of zeros are left out: dockerd and the docker CLI send
/// sparse files with all their holes, and a disk image of 100 GB may have 1 GB of content.
pub(super) fn copy_with_holes(from: &mut impl Read, to: &mut File) -> anyhow::Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut length = 0;
    loop {
        let filled = fill(from, &mut buffer).context("read tar")?;
        if filled == 0 {
            break;
        }
        length += filled as u64;
        if filled == BLOCK && buffer.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(BLOCK as i64)).context("write")?;
        } else {
            to.write_all(&buffer[..filled]).context("write")?;
        }
    }
    to.set_len(length).context("write")
}

/// Reads until the buffer is full or nothing is left.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A tar whose headers are limited in size.
pub(super) struct Bounded<R> {
    from: R,
    budget: Rc<Cell<u64>>,
    ended: Rc<Cell<bool>>,
}

impl<R> Bounded<R> {
    /// `budget` is how many bytes may still be read, and `ended` becomes true at the end.
    pub(super) fn new(from: R, budget: Rc<Cell<u64>>, ended: Rc<Cell<bool>>) -> Self {
        Self { from, budget, ended }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        let left = self.budget.get().checked_sub(length as u64);
        self.budget.set(left.unwrap_or(0));
        left.ok_or_else(|| io::Error::other("a header of more than 1 MiB"))?;
        Ok(length)
    }
}
