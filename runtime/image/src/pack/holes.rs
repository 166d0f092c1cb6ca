//! Sparse files: their holes are not read, and not sent if they are large.
//!
//! The form is that of old GNU tar, which Go, Python and libarchive read. Some clients know only
//! plain files (`tar-stream` of Node.js), so a file with small holes is sent as one, like dockerd
//! sends them all.

use std::{fs::File, io, ops::Range};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

/// Bytes that must be saved for a file to be sent in the form of sparse files.
const WORTHWHILE: u64 = 8 << 20;
/// The most segments. A file with more is sent as a plain one.
const MAX_SEGMENTS: usize = 64 << 10;

/// The parts of a file that have content.
pub(super) struct Segments(Vec<Range<u64>>);

impl Segments {
    /// Those of a file of `size` bytes with `blocks` of 512. `None` if it is not worthwhile.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn find(file: &File, size: u64, blocks: u64) -> io::Result<Option<Self>> {
        if size.saturating_sub(blocks.saturating_mul(512)) < WORTHWHILE {
            return Ok(None);
        }
        let mut segments = Vec::new();
        let mut position = 0;
        while position < size {
            let start = match seek(file, SeekFrom::Data(position)) {
                Ok(start) => start.min(size),
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let end = seek(file, SeekFrom::Hole(start))?.min(size);
            if start >= end || segments.len() == MAX_SEGMENTS {
                return Ok(None);
            }
            segments.push(start..end);
            position = end;
        }
        // The last one says where the file ends.
        segments.push(size..size);
        Ok(Some(Self(segments)))
    }

    /// Bytes of content.
    pub(super) fn length(&self) -> u64 {
        self.0.iter().map(|segment| segment.end - segment.start).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }

    /// Writes the map into `header`, and what does not fit there into blocks that follow it.
    pub(super) fn describe(&self, header: &mut Header, size: u64) -> Vec<u8> {
        let Some(gnu) = header.as_gnu_mut() else { return Vec::new() };
        gnu.set_real_size(size);
        let (first, rest) = self.0.split_at(self.0.len().min(gnu.sparse.len()));
        fill(&mut gnu.sparse, first);
        gnu.set_is_extended(!rest.is_empty());
        let mut blocks = Vec::new();
        let mut rest = rest.chunks(21).peekable();
        while let Some(chunk) = rest.next() {
            let mut block = GnuExtSparseHeader::new();
            fill(&mut block.sparse, chunk);
            block.set_is_extended(rest.peek().is_some());
            blocks.extend_from_slice(block.as_bytes());
        }
        blocks
    }
}

fn fill(slots: &mut [GnuSparseHeader], segments: &[Range<u64>]) {
    for (slot, segment) in slots.iter_mut().zip(segments) {
        slot.set_offset(segment.start);
        slot.set_length(segment.end - segment.start);
    }
}
