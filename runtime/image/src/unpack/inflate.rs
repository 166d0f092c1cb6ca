//! Thread one: decompresses a blob and computes the digest of the tar inside.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::mpsc::SyncSender,
};

use berth_base::error::{Error, Result};

use super::expansion::Expansion;
use crate::{
    compression::Compression,
    digest::{Digest, Hasher},
};

/// Size of one buffer.
const BUFFER: usize = 128 << 10;

/// Reads the blob to its end, sends the uncompressed tar, and returns the digest of that.
///
/// # Errors
/// `FailedPrecondition` if the blob cannot be decompressed or expands too much.
pub(super) fn inflate(
    blob: impl Read,
    expansion: &Expansion,
    sender: &SyncSender<Vec<u8>>,
) -> Result<Digest> {
    inflate_into(Counted { blob, expansion }, expansion, sender)
        .map_err(|error| Error::precondition(format!("decompress layer: {error}")))
}

/// Counts the bytes of the blob, which limit how much it may expand.
struct Counted<'a, R> {
    blob: R,
    expansion: &'a Expansion,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.blob.read(buffer)?;
        self.expansion.receive(length as u64);
        Ok(length)
    }
}

fn inflate_into(
    blob: impl Read,
    expansion: &Expansion,
    sender: &SyncSender<Vec<u8>>,
) -> io::Result<Digest> {
    let mut reader = BufReader::with_capacity(BUFFER, blob);
    let mut tar: Box<dyn Read + '_> = match Compression::detect(reader.fill_buf()?) {
        // Multi, because eStargz blobs consist of many gzip members.
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(&mut reader)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(&mut reader)?),
        Compression::None => Box::new(&mut reader),
    };
    let mut hasher = Hasher::default();
    loop {
        let mut buffer = vec![0; BUFFER];
        let length = fill(&mut tar, &mut buffer)?;
        if length == 0 {
            break;
        }
        buffer.truncate(length);
        hasher.update(&buffer);
        // Checked before the buffer is handed over, so that it is not written to disk first.
        expansion.grow(length as u64)?;
        // If the receiver is gone, it has failed, and its error is the one that gets reported.
        if sender.send(buffer).is_err() {
            break;
        }
    }
    drop(tar);
    // Bytes after the compressed stream are part of the blob, and so of its digest.
    io::copy(&mut reader, &mut io::sink())?;
    Ok(hasher.finish())
}

/// Reads until the buffer is full, so that the threads exchange fewer and larger messages.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}
