//! Reads a log in large blocks of whole records, over all of its files and over rotations.

use std::{collections::VecDeque, io, ops::ControlFlow, os::unix::fs::FileExt, path::PathBuf};

use bytes::Bytes;

use super::{
    files::{self, LogFile},
    record::Renderer,
    tail,
};

/// Bytes that are read at once. A record has at most 16 KiB and its prefix.
const BLOCK: usize = 128 << 10;

/// How far reading has come.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// A piece of the client's stream.
    Bytes(Bytes),
    /// All that is there was read, but there may be more later.
    Drained,
    /// There is nothing more to come, whatever is written.
    Finished,
}

/// A position in a log.
#[derive(Debug)]
pub(super) struct Blocks {
    path: PathBuf,
    /// Oldest first. The last one is that which the shim writes to, as far as is known.
    files: VecDeque<LogFile>,
    follows: bool,
    renderer: Renderer,
    buffer: Box<[u8]>,
    /// How much of the buffer's beginning is the beginning of a record.
    held: usize,
}

impl Blocks {
    /// Opens the log at `path`, at its last `tail` records.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn open(
        path: PathBuf,
        tail: Option<u64>,
        follows: bool,
        renderer: Renderer,
    ) -> io::Result<Self> {
        let mut opened = files::newer_than(&path, None)?;
        if let Some(records) = tail {
            tail::keep_last(&mut opened, records)?;
        }
        let buffer = vec![0; BLOCK].into_boxed_slice();
        Ok(Self { path, files: opened.into(), follows, renderer, buffer, held: 0 })
    }

    /// Reads until there is something for the client. Blocks.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn next(&mut self) -> io::Result<Progress> {
        let mut out = Vec::new();
        loop {
            if self.read()? == 0 {
                if self.next_file()? {
                    continue;
                }
                return Ok(if self.follows { Progress::Drained } else { Progress::Finished });
            }
            let flow = self.render(&mut out);
            if !out.is_empty() {
                if flow.is_break() {
                    self.finish();
                }
                return Ok(Progress::Bytes(out.into()));
            }
            if flow.is_break() {
                self.finish();
                return Ok(Progress::Finished);
            }
        }
    }

    /// Reads into the free part of the buffer. 0 at the end of the oldest file.
    fn read(&mut self) -> io::Result<usize> {
        let Some(file) = self.files.front_mut() else { return Ok(0) };
        let mut room = &mut self.buffer[self.held..];
        if !self.follows {
            // What is written after the request is not part of the answer: a busy container would
            // make it endless.
            let left = file.size.saturating_sub(file.position);
            room = &mut room[..usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK - self.held)];
        }
        let length = file.file.read_at(room, file.position)?;
        file.position += length as u64;
        self.held += length;
        Ok(length)
    }

    /// Renders the whole records of the buffer, and keeps the rest.
    fn render(&mut self, out: &mut Vec<u8>) -> ControlFlow<()> {
        let filled = &self.buffer[..self.held];
        let Some(last) = memchr::memrchr(b'\n', filled) else {
            if self.held == BLOCK {
                // No shim writes such a line.
                self.held = 0;
            }
            return ControlFlow::Continue(());
        };
        // A frame's header is shorter than the prefix that it replaces, unless times are wanted.
        out.reserve(last + 1 + last / 4);
        let flow = self.renderer.render(&filled[..=last], out);
        self.buffer.copy_within(last + 1..self.held, 0);
        self.held -= last + 1;
        flow
    }

    /// Goes on to the next file, if the one that was read to its end is not the last. When the
    /// shim has opened a new one, it writes no more to the old, so that the old is read to its end
    /// once more, now for good.
    fn next_file(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            // A record without an end was cut off by a full disk.
            self.held = 0;
            return Ok(true);
        }
        let known = self.files.front().map(|file| file.identity);
        if !self.follows || files::is_current(&self.path, known) {
            return Ok(false);
        }
        let newer = files::newer_than(&self.path, known)?;
        let found = !newer.is_empty();
        self.files.extend(newer);
        Ok(found)
    }

    /// There is nothing more to come.
    fn finish(&mut self) {
        self.files.clear();
        self.follows = false;
    }
}
