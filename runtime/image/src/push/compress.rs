//! Compresses a layer's tar while it is sent. The same tar always gives the same bytes, so that an
//! upload that broke off goes on with what the registry lacks, without a copy of what it has.

use std::io::{self, Read, Write};

use anyhow::Context;
use berth_base::error::Result;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::blob::Blob;
use crate::{compression::Compression, digest::Hasher, layer_tar::LayerTar};

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// zlib's default, which docker has as well.
const GZIP_LEVEL: u32 = 6;
/// zstd's default.
const ZSTD_LEVEL: i32 = 3;

/// Sends the blob of a layer but for the first `skip` bytes. `on_read` gets to know how many bytes of
/// the tar were read. `None` if nobody receives the chunks any more. Blocks.
///
/// # Errors
/// `FailedPrecondition` if the layer is damaged: the last chunk is an error then.
pub(super) fn send(
    tar: LayerTar,
    compression: Compression,
    skip: u64,
    chunks: mpsc::Sender<io::Result<Bytes>>,
    on_read: impl Fn(u64),
) -> Result<Option<Blob>> {
    let mut reader = CountedReader { tar, on_read };
    let mut sink = Sink { hasher: Hasher::default(), size: 0, skip, chunk: Vec::new(), chunks };
    let copied = compress(&mut reader, compression, &mut sink);
    if copied.is_err() && sink.chunks.is_closed() {
        return Ok(None);
    }
    match reader.tar.finish(copied.context("compress a layer")) {
        Ok(()) => Ok(Some(Blob { digest: sink.hasher.finish(), size: sink.size, compression })),
        Err(error) => {
            // The request must not look complete.
            let broken = io::Error::other(error.message.clone());
            let _ = sink.chunks.blocking_send(Err(broken));
            Err(error)
        }
    }
}

fn compress(reader: &mut impl Read, compression: Compression, sink: &mut Sink) -> io::Result<()> {
    match compression {
        Compression::None => drop(io::copy(reader, sink)?),
        Compression::Gzip => {
            let level = flate2::Compression::new(GZIP_LEVEL);
            let mut encoder = flate2::write::GzEncoder::new(&mut *sink, level);
            io::copy(reader, &mut encoder)?;
            encoder.finish()?;
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut *sink, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            io::copy(reader, &mut encoder)?;
            encoder.finish()?;
        }
    }
    sink.flush()
}

struct CountedReader<F> {
    tar: LayerTar,
    on_read: F,
}

impl<F: Fn(u64)> Read for CountedReader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.tar.read(buffer)?;
        (self.on_read)(length as u64);
        Ok(length)
    }
}

/// Hashes the blob, and sends it in chunks.
struct Sink {
    hasher: Hasher,
    size: u64,
    /// Bytes that are not sent, since the registry has them.
    skip: u64,
    chunk: Vec<u8>,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        let bytes = &bytes[..taken];
        self.hasher.update(bytes);
        self.size += taken as u64;
        let skipped = self.skip.min(taken as u64);
        self.skip -= skipped;
        self.chunk.extend_from_slice(&bytes[skipped as usize..]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.chunks.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
