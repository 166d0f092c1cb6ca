//! What a layer's tar has besides the content of its files, kept beside them, so that the tar can be made again bit by bit: to prove that
//! what is on disk is what was pulled, and to export it.
//!
//! `tar.zst` is a zstd stream of records: `0`, a length (u32), so many bytes of the tar; or `1`, the length of a path (u32), the path, and
//! a length (u64): the content of that file comes here. Numbers are little-endian.

use std::{
    cell::{Cell, RefCell},
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use super::{FILES, TAPE};

const RAW: u8 = 0;
const FILE: u8 = 1;
/// Gathered before a record is written.
const GATHERED: usize = 64 << 10;
/// Longer paths than Linux takes are not there.
const MAX_PATH: u32 = 4096;

/// Records a tar as it passes. A tar that cannot be made again, or a disk that is full, ends the recording and nothing else.
pub(super) struct Tape {
    path: PathBuf,
    /// The content of a file passes, which is on disk anyway.
    content: Cell<bool>,
    raw: RefCell<Vec<u8>>,
    /// None once recording has ended.
    out: RefCell<Option<zstd::Encoder<'static, File>>>,
}

impl Tape {
    pub(super) fn start(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let out = RefCell::new(Some(zstd::Encoder::new(file, 1).context("zstd")?));
        Ok(Self { path, content: Cell::new(false), raw: RefCell::default(), out })
    }

    /// Bytes of the tar.
    pub(super) fn pass(&self, bytes: &[u8]) {
        if self.content.get() || self.out.borrow().is_none() {
            return;
        }
        self.raw.borrow_mut().extend_from_slice(bytes);
        if self.raw.borrow().len() >= GATHERED {
            self.flush();
        }
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.content.get()
    }

    /// Does `work`, through which the content of the file `path` passes; its result is how long it was.
    pub(super) fn file(&self, path: &Path, work: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<u64> {
        self.content.set(true);
        let length = work();
        self.content.set(false);
        let length = length?;
        self.flush();
        let path = path.as_os_str().as_bytes();
        self.write(&[&[FILE], &(path.len() as u32).to_le_bytes(), path, &length.to_le_bytes()]);
        Ok(length)
    }

    /// Ends the recording: something of the tar is nowhere any more.
    pub(super) fn end(&self) {
        *self.out.borrow_mut() = None;
        let _ = fs::remove_file(&self.path);
    }

    /// Its size, if there is one.
    pub(super) fn finish(&self) -> Option<u64> {
        self.flush();
        let out = self.out.borrow_mut().take()?;
        match out.finish().and_then(|file| file.metadata()) {
            Ok(metadata) => Some(metadata.len()),
            Err(_) => {
                self.end();
                None
            }
        }
    }

    fn flush(&self) {
        let raw = std::mem::take(&mut *self.raw.borrow_mut());
        if !raw.is_empty() {
            self.write(&[&[RAW], &(raw.len() as u32).to_le_bytes(), &raw]);
        }
    }

    fn write(&self, parts: &[&[u8]]) {
        let written = match &mut *self.out.borrow_mut() {
            Some(out) => parts.iter().try_for_each(|part| out.write_all(part)),
            None => Ok(()),
        };
        if let Err(error) = written {
            tracing::debug!(path = %self.path.display(), %error, "the tar is not recorded");
            self.end();
        }
    }
}

/// A layer's tar, made again.
pub(crate) struct Rebuilt {
    records: zstd::Decoder<'static, BufReader<File>>,
    root: OwnedFd,
    now: Part,
}

enum Part {
    Raw { left: u64 },
    File { file: File, path: PathBuf, left: u64 },
}

impl Rebuilt {
    /// Of the layer in `directory`; `None` where its tar was not recorded.
    ///
    /// # Errors
    /// The files or the record cannot be opened.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Option<Self>> {
        let file = match File::open(directory.join(TAPE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("open {}", directory.join(TAPE).display()))?,
        };
        let records = zstd::Decoder::new(file).context("zstd")?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = openat(CWD, directory.join(FILES), flags, Mode::empty())
            .with_context(|| format!("open {}", directory.join(FILES).display()))?;
        Ok(Some(Self { records, root, now: Part::Raw { left: 0 } }))
    }

    /// How long the tar is: reads the record, but no file.
    ///
    /// # Errors
    /// The record is damaged.
    pub(crate) fn length(mut self) -> io::Result<u64> {
        let mut total = 0;
        loop {
            match self.record()? {
                None => return Ok(total),
                Some(Record::Raw(length)) => {
                    total += length;
                    io::copy(&mut (&mut self.records).take(length), &mut io::sink())?;
                }
                Some(Record::File(_, length)) => total += length,
            }
        }
    }

    fn record(&mut self) -> io::Result<Option<Record>> {
        self.read_record().map_err(|error| io::Error::other(format!("the record of the tar: {error}")))
    }

    fn read_record(&mut self) -> io::Result<Option<Record>> {
        let mut tag = [0];
        if self.records.read(&mut tag)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.records.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        match tag[0] {
            RAW => Ok(Some(Record::Raw(length.into()))),
            FILE if length <= MAX_PATH => {
                let (mut path, mut size) = (vec![0; length as usize], [0; 8]);
                self.records.read_exact(&mut path)?;
                self.records.read_exact(&mut size)?;
                Ok(Some(Record::File(OsStr::from_bytes(&path).into(), u64::from_le_bytes(size))))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no such record")),
        }
    }
}

enum Record {
    Raw(u64),
    File(PathBuf, u64),
}

impl Read for Rebuilt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = match &mut self.now {
                Part::Raw { left } => {
                    let length = (&mut self.records).take(*left).read(buffer)?;
                    *left -= length as u64;
                    if length == 0 && *left > 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the record of the tar ends early"));
                    }
                    length
                }
                Part::File { file, path, left } => {
                    let length = file.take(*left).read(buffer)?;
                    *left -= length as u64;
                    if length == 0 && *left > 0 {
                        return Err(io::Error::other(format!("{} is {left} bytes too short", path.display())));
                    }
                    length
                }
            };
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            self.now = match self.record()? {
                None => return Ok(0),
                Some(Record::Raw(left)) => Part::Raw { left },
                Some(Record::File(path, left)) => Part::File { file: open(&self.root, &path, left)?, path, left },
            };
        }
    }
}

/// A regular file of `length` bytes below `root`.
fn open(root: &OwnedFd, path: &Path, length: u64) -> io::Result<File> {
    let wrong = |what: String| io::Error::other(format!("{} {what}", path.display()));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
        .map_err(|error| wrong(format!("cannot be opened: {error}")))?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_size as u64 != length {
        return Err(wrong(format!("is not the file of {length} bytes that it was")));
    }
    Ok(file.into())
}
