//! Compresses a layer's tar while it is sent. The same tar always gives the same bytes, so that an
//! upload that broke off goes on with what the registry lacks, without a copy of what it has.

use std::io::{self, Read, Write};

use anyhow::Context;
use berth_base::{chunks::ChunkWriter, error::Result};
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
    chunks: &mpsc::Sender<io::Result<Bytes>>,
    on_read: impl Fn(u64),
) -> Result<Option<Blob>> {
    let mut reader = CountedReader { tar, on_read };
    let writer = ChunkWriter::new(CHUNK, |chunk| {
        chunks.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    let mut sink = Sink { hasher: Hasher::default(), size: 0, skip, chunks: writer };
    let copied = compress(&mut reader, compression, &mut sink);
    if copied.is_err() && chunks.is_closed() {
        return Ok(None);
    }
    match reader.tar.finish(copied.context("compress a layer")) {
        Ok(()) => Ok(Some(Blob { digest: sink.hasher.finish(), size: sink.size, compression })),
        Err(error) => {
            // The request must not look complete.
            let broken = io::Error::other(error.message.clone());
            let _ = chunks.blocking_send(Err(broken));
            Err(error)
        }
    }
}

fn compress(
    reader: &mut impl Read,
    compression: Compression,
    sink: &mut impl Write,
) -> io::Result<()> {
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

/// Hashes the blob, and sends it but for what the registry has.
struct Sink<W> {
    hasher: Hasher,
    size: u64,
    /// Bytes that are not sent yet, since the registry has them.
    skip: u64,
    chunks: W,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        self.chunks.write_all(&bytes[skipped as usize..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.chunks.flush()
    }
}
