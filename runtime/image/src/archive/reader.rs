//! Reads an archive, which is a tar, and finds its entries by path and by digest.
//!
//! Archives are as hostile as registries: the size of documents and the number of entries are
//! limited, and no name in an archive is ever used as a path on the host.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use berth_base::error::{Error, Result};
use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tar::EntryType;

use crate::{
    compression::{Compression, MAGIC_LENGTH},
    digest::{Digest, Hasher},
    documents::MAX_DOCUMENT,
    source::Source,
    unpack::Expansion,
};

/// Limit for the number of entries, which are kept in memory. An image has a few dozen.
const MAX_ENTRIES: usize = 1 << 16;
const CHUNK: usize = 128 << 10;

/// The position of an entry's content in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    offset: u64,
    pub size: u64,
}

/// An indexed archive.
#[derive(Debug)]
pub struct ArchiveReader {
    file: File,
    entries: HashMap<PathBuf, Extent>,
    /// Blobs by digest, for docker-archives, whose paths do not contain the digest.
    blobs: HashMap<Digest, Extent>,
}

/// The error for a malformed archive.
pub(super) fn wrong(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("archive: {what}"))
}

impl ArchiveReader {
    /// Opens the archive at `path`. If it is compressed or a pipe, it is first copied into an
    /// unnamed file in `directory`. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not a tar, or is truncated.
    pub(crate) fn open(path: &Path, directory: &Path) -> Result<Self> {
        let mut given =
            File::open(path).map_err(|error| wrong(format!("open {}: {error}", path.display())))?;
        // A pipe cannot be rewound, so these bytes are later chained before the rest.
        let mut magic = Vec::new();
        (&mut given).take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(wrong)?;
        let compression = Compression::detect(&magic);
        let is_seekable = given.metadata().is_ok_and(|metadata| metadata.is_file());
        match is_seekable && compression == Compression::None {
            true => Self::indexed(given),
            false => {
                let whole = io::Cursor::new(magic).chain(given);
                Self::indexed(copy_plain(compression, whole, directory)?)
            }
        }
    }

    /// Reads an archive from its beginning to its end, into an unnamed file in `directory`. Blocks.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn receive(mut from: &mut dyn Read, directory: &Path) -> Result<Self> {
        let mut magic = Vec::new();
        (&mut from).take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(wrong)?;
        let compression = Compression::detect(&magic);
        let whole = io::Cursor::new(magic).chain(from);
        Self::indexed(copy_plain(compression, whole, directory)?)
    }

    fn indexed(file: File) -> Result<Self> {
        let entries = index(&file)?;
        Ok(Self { file, entries, blobs: HashMap::new() })
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(Path::new(path))
    }

    pub(super) fn entry(&self, path: &str) -> Result<Extent> {
        self.entries
            .get(Path::new(path))
            .copied()
            .ok_or_else(|| wrong(format!("{path} is missing")))
    }

    /// Makes an entry available under its digest.
    pub(super) fn name_blob(&mut self, digest: Digest, at: Extent) {
        self.blobs.insert(digest, at);
    }

    /// Reads a small entry.
    pub(super) fn document(&self, at: Extent) -> Result<Vec<u8>> {
        if at.size > MAX_DOCUMENT as u64 {
            return Err(wrong(format!(
                "a document of {} bytes; {MAX_DOCUMENT} is the limit",
                at.size
            )));
        }
        let mut bytes = vec![0; at.size as usize];
        self.file.read_exact_at(&mut bytes, at.offset).context("read the archive")?;
        Ok(bytes)
    }

    fn find(&self, digest: &Digest) -> Result<Extent> {
        let in_layout = || self.entries.get(&Path::new("blobs/sha256").join(digest.hex()));
        self.blobs
            .get(digest)
            .or_else(in_layout)
            .copied()
            .ok_or_else(|| wrong(format!("blob {digest} is missing")))
    }

    /// Reads and verifies a manifest or config.
    ///
    /// # Errors
    /// `InvalidArgument` if the blob is missing, too large or damaged.
    pub(crate) fn by_digest(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.document(self.find(digest)?)?;
        match Digest::sha256(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(wrong(format!("blob {digest} is damaged"))),
        }
    }

    /// Opens a layer. It is verified when it has been unpacked.
    ///
    /// # Errors
    /// `InvalidArgument` if the blob is missing.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<ArchivedBlob> {
        self.read(self.find(digest)?)
    }

    fn read(&self, at: Extent) -> Result<ArchivedBlob> {
        let file = self.file.try_clone().context("duplicate a descriptor")?;
        Ok(ArchivedBlob { file, offset: at.offset, left: at.size })
    }

    pub(super) fn compression(&self, at: Extent) -> Result<Compression> {
        let mut magic = [0; MAGIC_LENGTH];
        let length = self.file.read_at(&mut magic, at.offset).context("read the archive")?;
        Ok(Compression::detect(&magic[..length]))
    }

    pub(super) fn digest(&self, at: Extent) -> Result<Digest> {
        let mut blob = self.read(at)?;
        let mut hasher = Hasher::default();
        while let Some(chunk) = blob.next()? {
            hasher.update(&chunk);
        }
        Ok(hasher.finish())
    }
}

/// The bytes of one layer. Reads at offsets of its own, so that several layers of one file can be
/// unpacked at once.
#[derive(Debug)]
pub(crate) struct ArchivedBlob {
    file: File,
    offset: u64,
    left: u64,
}

impl Source for ArchivedBlob {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        if chunk.is_empty() {
            return Ok(None);
        }
        self.file.read_exact_at(&mut chunk, self.offset).context("read the archive")?;
        self.offset += chunk.len() as u64;
        self.left -= chunk.len() as u64;
        Ok(Some(chunk.into()))
    }
}

/// Finds all files of the tar, by path without `./`. A link counts as the file that it points to,
/// because older versions of `docker save` write links for layers that several images share.
fn index(file: &File) -> Result<HashMap<PathBuf, Extent>> {
    // The duplicate shares the file offset with the original (dup(2)), but everything else reads at
    // explicit offsets.
    let mut file = file.try_clone().context("duplicate a descriptor")?;
    file.seek(SeekFrom::Start(0)).context("read the archive")?;
    let length = file.metadata().context("stat the archive")?.len();
    let mut entries = HashMap::new();
    let mut links = Vec::new();
    let mut tar = tar::Archive::new(file);
    // Seeks from header to header instead of reading gigabytes of layers.
    for entry in tar.entries_with_seek().map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if entries.len() + links.len() >= MAX_ENTRIES {
            return Err(wrong(format!("more than {MAX_ENTRIES} entries")));
        }
        let path = resolve(Path::new(""), &entry.path().map_err(wrong)?);
        let at = Extent { offset: entry.raw_file_position(), size: entry.size() };
        // Checked because seeking past the end is not an error: a truncated tar would look
        // complete.
        if at.offset.checked_add(at.size).is_none_or(|end| end > length) {
            return Err(wrong(format!("it ends within {}", path.display())));
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => drop(entries.insert(path, at)),
            kind @ (EntryType::Symlink | EntryType::Link) => {
                if let Some(target) = entry.link_name().map_err(wrong)? {
                    // Symbolic links are relative to their directory, hard links to the root of the
                    // archive.
                    let base = match kind {
                        EntryType::Link => Path::new(""),
                        _ => path.parent().unwrap_or(Path::new("")),
                    };
                    let target = resolve(base, &target);
                    links.push((path, target));
                }
            }
            _ => {}
        }
    }
    // Only now, because a link may come before its target. Links to links are not followed: no tool
    // writes them, and they could form a loop.
    for (path, target) in links {
        if let Some(at) = entries.get(&target).copied() {
            entries.insert(path, at);
        }
    }
    Ok(entries)
}

/// Resolves `path` relative to `base`, both within the archive. `..` cannot lead out of it.
fn resolve(base: &Path, path: &Path) -> PathBuf {
    let mut whole = base.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => whole.push(name),
            Component::ParentDir => drop(whole.pop()),
            Component::RootDir => whole = PathBuf::new(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    whole
}

/// Copies an archive that cannot be read in place into a file, decompressed.
fn copy_plain(compression: Compression, from: impl Read, directory: &Path) -> Result<File> {
    let expansion = Expansion::default();
    let from = Counted { from, expansion: &expansion };
    let mut plain: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(from))),
        Compression::Zstd => Box::new(zstd::Decoder::new(from).context("zstd")?),
        Compression::None => Box::new(from),
    };
    let mut copy = nameless_file(directory)?;
    copy_all(&mut plain, &mut copy, &expansion)?;
    Ok(copy)
}

/// Creates an unnamed file (open(2), O_TMPFILE). It disappears with its descriptor, so nothing is
/// left behind even if the daemon is killed.
fn nameless_file(directory: &Path) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("make a file in {}", directory.display()))?;
    Ok(file.into())
}

/// Counts what is read of an archive.
struct Counted<'a, R> {
    from: R,
    expansion: &'a Expansion,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.expansion.receive(length as u64);
        Ok(length)
    }
}

/// Copies everything, unless it becomes too much: a bomb would fill the disk of all images before
/// its end came. Keeps errors in reading, which are the archive's fault, apart from errors in
/// writing, which are the disk's.
fn copy_all(from: &mut dyn Read, to: &mut File, expansion: &Expansion) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                expansion.grow(length as u64).map_err(wrong)?;
                to.write_all(&buffer[..length]).context("copy the archive")?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(wrong(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_not_copied_to_its_end() {
        let mut null = File::options().write(true).open("/dev/null").unwrap();
        let expansion = Expansion::default();
        // Nothing was received of the archive yet, as of a blob of a few bytes.
        let copied = copy_all(&mut io::repeat(0).take(2 << 30), &mut null, &expansion);
        assert!(copied.unwrap_err().message.contains("0 bytes became more than"));
    }
}
