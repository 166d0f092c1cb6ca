//! Where the last records of a log begin. Only the end of the log is read, so that it takes the
//! same time for a log of any length.

use std::{io, os::unix::fs::FileExt};

use super::files::LogFile;

/// Bytes that are read at once.
const BLOCK: usize = 64 << 10;

/// Forgets files, and moves the position in the oldest one that is left, so that `files`, which are
/// oldest first, hold the last `records` records.
///
/// # Errors
/// Errors of the filesystem.
pub(super) fn keep_last(files: &mut Vec<LogFile>, records: u64) -> io::Result<()> {
    let mut missing = records;
    for index in (0..files.len()).rev() {
        let file = &mut files[index];
        match start_of_last(file, missing)? {
            Start::At(position) => {
                file.position = position;
                files.drain(..index);
                return Ok(());
            }
            Start::Earlier { found } => missing -= found,
        }
    }
    Ok(())
}

enum Start {
    At(u64),
    /// In an earlier file: this one has only so many lines.
    Earlier {
        found: u64,
    },
}

/// Where the last `count` lines of a file begin. A line that has no newline yet does not count.
fn start_of_last(file: &LogFile, count: u64) -> io::Result<Start> {
    let mut found = 0;
    let mut end = file.size;
    let mut buffer = vec![0; BLOCK];
    while end > 0 {
        let length = BLOCK.min(end as usize);
        let start = end - length as u64;
        let block = &mut buffer[..length];
        file.file.read_exact_at(block, start)?;
        for newline in memchr::memrchr_iter(b'\n', block) {
            // The newline in front of the wanted lines belongs to the line before them.
            if found == count {
                return Ok(Start::At(start + newline as u64 + 1));
            }
            found += 1;
        }
        end = start;
    }
    Ok(if found == count { Start::At(0) } else { Start::Earlier { found } })
}
