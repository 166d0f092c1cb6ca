//! Runs the two threads that unpack a layer.

use std::{io::Read, os::fd::BorrowedFd, sync::mpsc::sync_channel, thread};

use anyhow::Context;
use berth_base::error::{Error, Kind, Result};

use super::{contents::Contents, expansion::Expansion, extract::extract, inflate::inflate};

/// Capacity of the queue between the threads, in buffers.
const QUEUE: usize = 8;

/// Unpacks a layer into `FILES` in `directory`, which exists and is empty. Reads `blob` to its end.
/// Blocks. Nothing is synced here; see `store::durability`.
///
/// # Errors
/// `FailedPrecondition` if the blob cannot be decompressed, or if the tar contains what a layer
/// must not; `ResourceExhausted` if the disk is full.
pub(crate) fn unpack(blob: impl Read + Send, directory: BorrowedFd<'_>) -> Result<Contents> {
    let (sender, receiver) = sync_channel(QUEUE);
    let expansion = &Expansion::default();
    thread::scope(|scope| {
        let inflater = thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflate(blob, expansion, &sender))
            .context("start a thread")?;
        // The calling thread extracts, so only one thread has to be started.
        let extracted = extract(receiver, directory, expansion);
        let inflated = inflater
            .join()
            .map_err(|_| Error::new(Kind::Internal, "the inflating thread panicked"))?;
        // The first thread's error comes first. If it fails, the tar ends early, and the extraction
        // fails as a consequence.
        let diff_id = inflated?;
        Ok(Contents { diff_id, files: extracted? })
    })
}
