//! Sparse files as GNU tar and bsdtar store them: the tar contains only their data, and a map that
//! says where it belongs.
//!
//! The old form is a separate entry type (tar(5), "GNU tar archives", type S). The tar crate
//! supports it and returns zeros for holes. The newer forms are regular files with PAX headers (GNU
//! tar manual, "Storing Sparse Files"), whose map is in a header (version 0.1) or before the data
//! (version 1.0).

use std::{cell::Cell, fs::File, io::Read, ops::Range, os::unix::fs::FileExt};

use anyhow::Context;

use super::{
    expansion::Expansion,
    refuse::{refuse, unreadable},
};
use crate::usage::BLOCK;

/// Size of the blocks that a tar consists of.
pub(super) const TAR_BLOCK: u64 = 512;
/// Limit for the segments of all sparse files of a layer together. For a file of the old form, the
/// tar crate needs time quadratic in the number of segments, and a segment takes only 24 bytes that
/// compress well (CVE-2025-58183).
const MAX_SEGMENTS: u64 = 1 << 14;
/// Number of segments in a header of the old form, and in each further block of its map.
const SEGMENTS: u64 = 4;
const MORE_SEGMENTS: u64 = 21;
/// Decimal digits of the largest u64.
const MAX_DIGITS: usize = 20;

/// Copies the sparse files of one layer and enforces the limits for them.
#[derive(Debug)]
pub(super) struct SparseCopier<'a> {
    /// Number of bytes of the tar that have been read.
    position: &'a Cell<u64>,
    expansion: &'a Expansion,
    segments: u64,
}

/// The result of copying a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub length: u64,
    /// Number of blocks that contain data, and so occupy disk space.
    pub blocks: u64,
    pub data: Vec<Range<u64>>,
}

impl Written {
    /// Adds a segment. Segments must be added in order. A block that two segments share counts
    /// once.
    fn add(&mut self, segment: Range<u64>) {
        let counted = self.data.last().map_or(0, |last| last.end.div_ceil(BLOCK));
        let first = counted.max(segment.start / BLOCK);
        self.blocks += segment.end.div_ceil(BLOCK).saturating_sub(first);
        match self.data.last_mut() {
            Some(last) if last.end == segment.start => last.end = segment.end,
            _ => self.data.push(segment),
        }
    }
}

/// The PAX headers of a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseHeaders {
    /// The real name of the file. The entry has an artificial name, for tools that do not support
    /// sparse files.
    pub name: Option<Vec<u8>>,
    pub length: u64,
    /// `None` if the map is stored before the data.
    map: Option<Vec<Range<u64>>>,
}

impl SparseHeaders {
    /// Parses the PAX headers of one entry. `None` if it is not a sparse file.
    ///
    /// # Errors
    /// `FailedPrecondition` for an unsupported form.
    pub(super) fn parse<'a>(
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> anyhow::Result<Option<Self>> {
        let mut sparse = Self::default();
        let mut major = 0;
        let mut is_sparse = false;
        for (name, value) in headers {
            let Some(name) = name.strip_prefix(b"GNU.sparse.") else { continue };
            is_sparse = true;
            match name {
                b"major" => major = number(value)?,
                b"name" => sparse.name = Some(value.to_owned()),
                b"size" | b"realsize" => sparse.length = number(value)?,
                b"map" => {
                    let numbers = value.split(|byte| *byte == b',').map(number);
                    let numbers = numbers.collect::<anyhow::Result<Vec<_>>>()?;
                    sparse.map = Some(segments(&numbers)?);
                }
                b"minor" | b"numblocks" => {}
                // Version 0.0 has a header for each number. GNU tar has not written it since 2006.
                _ => return Err(refuse("a sparse file of a form that is not known")),
            }
        }
        match (is_sparse, major, &sparse.map) {
            (false, ..) => Ok(None),
            (true, 1, None) | (true, 0, Some(_)) => Ok(Some(sparse)),
            _ => Err(refuse("a sparse file of a form that is not known")),
        }
    }
}

fn number(digits: &[u8]) -> anyhow::Result<u64> {
    let number = str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| refuse("the map of a sparse file is damaged"))
}

/// Builds segments from alternating offsets and lengths. Requires ascending segments without
/// overlap, so that the data cannot be longer than the file.
fn segments(numbers: &[u64]) -> anyhow::Result<Vec<Range<u64>>> {
    let mut segments: Vec<Range<u64>> = Vec::new();
    for pair in numbers.chunks(2) {
        let end = if let [start, length] = pair { start.checked_add(*length) } else { None };
        let after = segments.last().map_or(0, |last| last.end);
        match end.filter(|_| pair[0] >= after) {
            Some(end) => segments.push(pair[0]..end),
            None => return Err(refuse("the map of a sparse file is damaged")),
        }
    }
    Ok(segments)
}

impl<'a> SparseCopier<'a> {
    pub(super) fn new(position: &'a Cell<u64>, expansion: &'a Expansion) -> Self {
        Self { position, expansion, segments: 0 }
    }

    /// Counts the segments of an entry of the old form. The rest of its map begins at the offset
    /// `map` of the tar. The tar crate does not expose the number of segments, but it has read
    /// exactly the blocks of the map when it returns the entry, so nothing of the content may have
    /// been read.
    ///
    /// # Errors
    /// The layer has too many segments.
    pub(super) fn count_old_segments(&mut self, map: u64) -> anyhow::Result<()> {
        let blocks = self.position.get().saturating_sub(map) / TAR_BLOCK;
        self.count_segments(SEGMENTS + blocks * MORE_SEGMENTS)
    }

    fn count_segments(&mut self, count: u64) -> anyhow::Result<()> {
        self.segments = self.segments.saturating_add(count);
        match self.segments > MAX_SEGMENTS {
            true => Err(refuse(format!(
                "the layer has sparse files of more than {MAX_SEGMENTS} segments"
            ))),
            false => Ok(()),
        }
    }

    /// Copies a file of the old form. Its holes stay holes.
    ///
    /// # Errors
    /// The tar is truncated or expands too much, or the file cannot be written.
    pub(super) fn copy_old_form(
        &self,
        from: &mut impl Read,
        to: &File,
        buffer: &mut [u8],
    ) -> anyhow::Result<Written> {
        let mut written = Written::default();
        loop {
            let position = self.position.get();
            let length = from.read(buffer).map_err(|error| unreadable(&error))?;
            if length == 0 {
                break;
            }
            let end = written.length + length as u64;
            if self.position.get() == position {
                // Nothing was read from the tar, so these are the zeros that the tar crate returns
                // for a hole. They are not written, but count as expansion.
                self.grow(length as u64)?;
            } else {
                to.write_all_at(&buffer[..length], written.length).context("write")?;
                written.add(written.length..end);
            }
            written.length = end;
        }
        // Sets the length of a file that ends with a hole.
        to.set_len(written.length).context("write")?;
        Ok(written)
    }

    /// The map of a file with PAX headers, which may have to be read from the beginning of the
    /// content.
    ///
    /// # Errors
    /// `FailedPrecondition` if the map is malformed or too long.
    pub(super) fn map(
        &mut self,
        headers: &mut SparseHeaders,
        from: &mut impl Read,
    ) -> anyhow::Result<Vec<Range<u64>>> {
        let map = match headers.map.take() {
            Some(map) => map,
            None => read_map(from)?,
        };
        self.count_segments(map.len() as u64)?;
        match map.last().is_some_and(|last| last.end > headers.length) {
            true => Err(refuse("the map of a sparse file is damaged")),
            false => Ok(map),
        }
    }

    /// Copies the segments `map` of a file of `length` bytes.
    ///
    /// # Errors
    /// The tar is truncated or expands too much, or the file cannot be written.
    pub(super) fn copy_segments(
        &self,
        (length, map): (u64, &[Range<u64>]),
        from: &mut impl Read,
        to: &File,
        buffer: &mut [u8],
    ) -> anyhow::Result<Written> {
        let mut written = Written { length, ..Written::default() };
        let mut data = 0;
        for Range { start, end } in map {
            let mut at = *start;
            while at < *end {
                let part = buffer.len().min((end - at).try_into().unwrap_or(usize::MAX));
                from.read_exact(&mut buffer[..part]).map_err(|error| unreadable(&error))?;
                to.write_all_at(&buffer[..part], at).context("write")?;
                written.add(at..at + part as u64);
                at += part as u64;
            }
            data += end - start;
        }
        self.grow(length - data)?;
        to.set_len(length).context("write")?;
        Ok(written)
    }

    fn grow(&self, hole: u64) -> anyhow::Result<()> {
        self.expansion.grow(hole).map_err(|error| refuse(error.to_string()))
    }
}

/// Reads a map that is stored before the data: decimal numbers, each with a newline, padded to
/// whole blocks. The first is the number of segments, then come their offsets and lengths.
fn read_map(from: &mut impl Read) -> anyhow::Result<Vec<Range<u64>>> {
    let mut numbers = Vec::new();
    let mut digits = Vec::new();
    let mut wanted = 1;
    while numbers.len() < wanted {
        let mut block = [0; TAR_BLOCK as usize];
        from.read_exact(&mut block).map_err(|error| unreadable(&error))?;
        for byte in block {
            match byte {
                b'\n' if numbers.len() < wanted => {
                    numbers.push(number(&digits)?);
                    digits.clear();
                    // Reads at most one segment more than allowed: enough for `map` to see that
                    // there are too many.
                    let count = numbers[0].min(MAX_SEGMENTS + 1) as usize;
                    wanted = 1 + 2 * count;
                }
                _ if numbers.len() == wanted => break,
                byte if digits.len() < MAX_DIGITS => digits.push(byte),
                _ => return Err(refuse("the map of a sparse file is damaged")),
            }
        }
    }
    segments(&numbers[1..])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Gives parts in turn, as the tar crate does: data, which moves the position, and zeros, which
    /// do not.
    struct Parts<'a>(Vec<(bool, u64)>, &'a Cell<u64>);

    impl Read for Parts<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.retain(|(_, left)| *left > 0);
            let Some((data, left)) = self.0.first_mut() else { return Ok(0) };
            let length = buffer.len().min(*left as usize);
            buffer[..length].fill(u8::from(*data));
            *left -= length as u64;
            self.1.set(self.1.get() + if *data { length as u64 } else { 0 });
            Ok(length)
        }
    }

    #[test]
    fn only_data_is_written_and_counted() {
        let (hole, data) = (|length| (false, length), |length| (true, length));
        for (parts, length, blocks, ranges) in [
            (vec![hole(1 << 20)], 1 << 20, 0, &[][..]),
            (vec![data(1)], 1, 1, &[(0, 1)]),
            (vec![hole(4096), data(4097)], 8193, 2, &[(4096, 8193)]),
            // Two segments in one block are one block.
            (vec![hole(10), data(10), hole(10), data(10)], 40, 1, &[(10, 20), (30, 40)]),
            (
                vec![data(4096), hole(4095), data(2), hole(1 << 30)],
                8193 + (1 << 30),
                3,
                &[(0, 4096), (8191, 8193)],
            ),
        ] {
            let data = ranges.iter().map(|(start, end)| *start..*end).collect();
            let (position, expansion) = (Cell::new(0), Expansion::default());
            let file = tempfile::tempfile().unwrap();
            let sparse = SparseCopier::new(&position, &expansion);
            expansion.receive(2 << 20);
            let written = sparse
                .copy_old_form(&mut Parts(parts.clone(), &position), &file, &mut [0; 1000])
                .unwrap();
            assert_eq!(written, Written { length, blocks, data }, "{parts:?}");
            let found = file.metadata().unwrap();
            assert!(
                found.len() == length && found.blocks() * 512 < 128 << 10,
                "{parts:?}: {found:?}"
            );
        }
    }

    #[test]
    fn holes_and_segments_have_limits() {
        let (position, expansion) = (Cell::new(0), Expansion::default());
        expansion.receive(74);
        let mut sparse = SparseCopier::new(&position, &expansion);
        let mut hole = Parts(vec![(false, 3 << 30)], &position);
        let file = tempfile::tempfile().unwrap();
        let refused = sparse.copy_old_form(&mut hole, &file, &mut [0; 128 << 10]).unwrap_err();
        assert!(refused.to_string().contains("74 bytes became more than"), "{refused}");
        position.set(512 * 700);
        sparse.count_old_segments(512).unwrap();
        assert!(sparse.count_old_segments(512).unwrap_err().to_string().contains("16384 segments"));
    }

    #[test]
    fn pax_headers_say_it_in_two_ways() {
        let parse = |headers: &[(&str, &str)]| {
            SparseHeaders::parse(
                headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
            )
        };
        let one = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "n"),
            ("GNU.sparse.realsize", "9"),
        ];
        let expected = SparseHeaders { name: Some(b"n".to_vec()), length: 9, map: None };
        assert_eq!(parse(&one).unwrap(), Some(expected));
        let zero = [
            ("GNU.sparse.size", "9"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.map", "1,2,5,4"),
        ];
        let expected = SparseHeaders { name: None, length: 9, map: Some(vec![1..3, 5..9]) };
        assert_eq!(parse(&zero).unwrap(), Some(expected));
        assert_eq!(parse(&[("path", "x")]).unwrap(), None);
        for wrong in ["1", "5,1,1,1", "x,1", "18446744073709551615,1", "-1,2", ""] {
            assert!(parse(&[("GNU.sparse.map", wrong)]).is_err(), "{wrong}");
        }
        assert!(
            parse(&[("GNU.sparse.offset", "1")]).is_err()
                && parse(&[("GNU.sparse.major", "2")]).is_err()
        );
    }

    #[test]
    fn a_map_before_the_data_ends_with_its_block() {
        let padded = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            bytes.push(b'd');
            bytes
        };
        let text = padded("2\n0\n10\n4096\n1\n");
        let mut rest = text.as_slice();
        assert_eq!((read_map(&mut rest).unwrap(), rest), (vec![0..10, 4096..4097], &b"d"[..]));
        let many: String = (0..200).map(|number| format!("{}\n1\n", number * 4096)).collect();
        let text = padded(&format!("200\n{many}"));
        let mut rest = text.as_slice();
        assert_eq!((read_map(&mut rest).unwrap().len(), rest), (200, &b"d"[..]));
        let empty = padded("0\n");
        assert!(read_map(&mut empty.as_slice()).unwrap().is_empty());
        for wrong in ["", "x\n", "1\n5\n", "99999999999999999999999999", "2\n5\n1\n5\n1\n"] {
            assert!(read_map(&mut padded(wrong).as_slice()).is_err(), "{wrong}");
        }
    }
}
