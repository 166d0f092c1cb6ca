//! One layer: blob -> sha256 -> inflate -> sha256 of the tar (diff-id) -> files, as one pipeline over two threads.
//!
//! A layer's bytes are hostile. Names are resolved by openat2 below the layer's own directory, never by path; what would leave
//! it is refused; headers and totals are bounded. Memory in flight: `QUEUE` buffers of `BUFFER` bytes, a decompressor, one tar
//! header, and a record per directory.

mod file;
mod layer;
mod tape;

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};
use sha2::{Digest as _, Sha256};
use tar::Archive;

pub(crate) use self::{file::unpack_file, layer::inside, tape::Rebuilt};
use self::{layer::Layer, tape::Tape};
use super::reference::Digest;
use crate::error::{Error, Kind, Result};

/// Where a layer's files are, below its own directory.
pub(crate) const FILES: &str = "fs";
/// The rest of its tar.
const TAPE: &str = "tar.zst";
const BUFFER: usize = 128 << 10;
const QUEUE: usize = 8;
/// Of one entry: names, links and extended attributes together.
const MAX_HEADER: u64 = 1 << 20;
const TAR_BLOCK: u64 = 512;
/// What a file occupies at least; near enough to du(1) on the usual file systems.
const BLOCK: u64 = 4096;
/// A layer that has grown by so much in decompression is a bomb, once it is so large. gzip cannot do more than 1032.
const BOMB_RATIO: u64 = 1000;
const BOMB_FROM: u64 = 1 << 30;

/// What a layer turned out to be.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Of the bytes that came in.
    pub blob: Digest,
    /// Of the tar inside.
    pub diff_id: Digest,
    pub bytes: u64,
    pub inodes: u64,
    /// Directories that no entry speaks of: their attributes are those of the layers below.
    pub implied: Vec<PathBuf>,
}

/// Unpacks a layer into `FILES` in `directory`, which exists and is empty. Blocks; reads `source` to its end.
///
/// # Errors
/// `FailedPrecondition` for a tar that does what no layer may, `ResourceExhausted` for a full disk, the source's own error.
pub(crate) fn unpack(source: &mut (dyn Source + Send), directory: &Path) -> Result<Unpacked> {
    let target = directory.join(FILES);
    let tape = directory.join(TAPE);
    let root = openat(CWD, &target, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", target.display()))?;
    let (sender, receiver) = sync_channel(QUEUE);
    thread::scope(|scope| {
        let inflater =
            thread::Builder::new().name("inflate".into()).spawn_scoped(scope, move || inflate(source, &sender));
        let inflater = inflater.context("start a thread")?;
        let extracted = extract(receiver, &root, tape);
        let inflated = inflater.join().map_err(|_| Error::new(Kind::Internal, "the inflating thread panicked"))?;
        // What went wrong first counts: without a tar to read the extraction fails too.
        let (blob, diff_id) = inflated?;
        let Extracted { bytes, inodes, implied } = extracted?;
        Ok(Unpacked { blob, diff_id, bytes, inodes, implied })
    })
}

/// Bytes on disk of a file with so many.
fn occupied(length: u64) -> u64 {
    length.div_ceil(BLOCK) * BLOCK
}

/// Bytes of a blob, with errors that know their kind.
pub(crate) trait Source {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> Result<Option<bytes::Bytes>>;
}

/// A `Source` as `Read`, hashed on the way. Keeps the source's error aside, since io::Error has no room for its kind.
struct Blob<'a> {
    source: &'a mut (dyn Source + Send),
    chunk: bytes::Bytes,
    hash: Sha256,
    received: Rc<Cell<u64>>,
    failed: Option<Error>,
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.source.next() {
                Ok(Some(chunk)) => {
                    self.hash.update(&chunk);
                    self.received.set(self.received.get() + chunk.len() as u64);
                    self.chunk = chunk;
                }
                Ok(None) => return Ok(0),
                Err(error) => {
                    let text = error.message.clone();
                    self.failed = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

/// Thread one: the digests of the blob and of the tar inside.
fn inflate(source: &mut (dyn Source + Send), sender: &SyncSender<Vec<u8>>) -> Result<(Digest, Digest)> {
    let mut blob =
        Blob { source, chunk: bytes::Bytes::new(), hash: Sha256::new(), received: Rc::default(), failed: None };
    let result = inflate_into(&mut blob, sender);
    if let Some(error) = blob.failed {
        return Err(error);
    }
    let diff_id = result.map_err(|error| Error::precondition(format!("decompress layer: {error}")))?;
    Ok((Digest::of(blob.hash.finalize()), diff_id))
}

fn inflate_into(blob: &mut Blob<'_>, sender: &SyncSender<Vec<u8>>) -> io::Result<Digest> {
    let received = blob.received.clone();
    let mut reader = BufReader::with_capacity(BUFFER, &mut *blob);
    // Media types lie about compression often enough that nobody goes by them.
    let magic = reader.fill_buf()?;
    let mut tar: Box<dyn Read + '_> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(&mut reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(&mut reader)?)
        }
        _ => Box::new(&mut reader),
    };
    let mut hash = Sha256::new();
    let mut unpacked = 0;
    loop {
        let mut buffer = vec![0; BUFFER];
        let length = fill(&mut tar, &mut buffer)?;
        if length == 0 {
            break;
        }
        buffer.truncate(length);
        hash.update(&buffer);
        unpacked += length as u64;
        if unpacked > BOMB_FROM && unpacked / BOMB_RATIO > received.get() {
            return Err(io::Error::other(format!("{} bytes became more than {unpacked}", received.get())));
        }
        // A receiver that is gone has its own error to tell.
        if sender.send(buffer).is_err() {
            break;
        }
    }
    drop(tar);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(Digest::of(hash.finalize()))
}

/// Reads until the buffer is full: fewer and larger messages between the threads.
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

/// The receiving end as `Read`, with a budget that bounds what the tar crate may hold for one header.
struct Buffers {
    receiver: Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
    budget: Rc<Cell<u64>>,
    tape: Rc<Tape>,
    /// Bytes that came, and those that were added to fill the last block.
    length: u64,
}

impl Read for Buffers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.current.read(buffer)?;
            if length > 0 {
                let left = self.budget.get().checked_sub(length as u64);
                self.budget.set(left.ok_or_else(|| io::Error::other("a header of more than 1 MiB"))?);
                self.tape.pass(&buffer[..length]);
                self.length += length as u64;
                return Ok(length);
            }
            match self.receiver.recv() {
                Ok(next) => self.current = io::Cursor::new(next),
                Err(_) if self.tape.is_in_content() => return Ok(0),
                // Some tools leave out what fills the last block of the last file (umoci 0.4).
                Err(_) => {
                    let missing = self.length.next_multiple_of(TAR_BLOCK) - self.length;
                    let length = buffer.len().min(missing as usize);
                    buffer[..length].fill(0);
                    self.length += length as u64;
                    return Ok(length);
                }
            }
        }
    }
}

struct Extracted {
    bytes: u64,
    inodes: u64,
    implied: Vec<PathBuf>,
}

/// Thread two: entries to files.
fn extract(receiver: Receiver<Vec<u8>>, root: &OwnedFd, tape: PathBuf) -> Result<Extracted> {
    let (budget, tape) = (Rc::new(Cell::new(MAX_HEADER)), Rc::new(Tape::start(tape)?));
    let current = io::Cursor::default();
    let mut archive =
        Archive::new(Buffers { receiver, current, budget: budget.clone(), tape: tape.clone(), length: 0 });
    let mut layer = Layer::new(root.as_fd(), &tape);
    for entry in archive.entries().context("read tar")? {
        let mut entry = entry.map_err(|error| Error::precondition(format!("read tar: {error}")))?;
        budget.set(u64::MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        layer.add(&mut entry).map_err(|error| Error::from(error).during(format!("tar entry {name:?}")))?;
        // What is left of the entry's data is skipped here, so that the budget is for the next header alone.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| Error::precondition(format!("read tar: {error}")))?;
        budget.set(MAX_HEADER);
    }
    budget.set(u64::MAX);
    // Padding after the end is part of the digest.
    io::copy(&mut archive.into_inner(), &mut io::sink()).context("read tar")?;
    layer.set_times()?;
    if let Some(length) = tape.finish() {
        layer.count(length);
    }
    Ok(Extracted { bytes: layer.bytes, inodes: layer.inodes, implied: layer.implied.into_iter().collect() })
}
