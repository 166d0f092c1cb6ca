//! Reassembles a layer's tar from its files and its tar-split.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use berth_base::open_in_root::open_in_root;
use berth_shim::record::{self, Found};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::tar_split::{FILE, RAW, SEGMENT};
use crate::layer_dir::{FILES, TAR_SPLIT};

/// Linux does not accept longer paths, so a longer one means a damaged record, and nothing should
/// be allocated for it.
const MAX_PATH: u32 = 4096;

/// A layer's tar, which is reassembled while it is read.
pub(crate) struct ReassembledTar {
    records: zstd::Decoder<'static, BufReader<File>>,
    root: OwnedFd,
    current: Piece,
}

/// What the tar is currently read from.
enum Piece {
    Raw { left: u64 },
    File { file: File, path: PathBuf, left: u64 },
}

enum Record {
    /// The number of bytes of the tar that follow.
    Raw(u64),
    File {
        path: PathBuf,
        length: u64,
    },
    Segment {
        path: PathBuf,
        file_length: u64,
        range: Range<u64>,
    },
}

impl ReassembledTar {
    /// Opens the layer in `directory`. `None` if it has no tar-split.
    ///
    /// # Errors
    /// The files or the tar-split cannot be opened.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(TAR_SPLIT);
        let file = match record::open(&path).with_context(|| format!("open {}", path.display()))? {
            Found::Record(file) => file,
            Found::Absent => return Ok(None),
            Found::Damaged => bail!("{} is not a file", path.display()),
        };
        let records = zstd::Decoder::new(file).context("zstd")?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = openat(CWD, directory.join(FILES), flags, Mode::empty())
            .with_context(|| format!("open {}", directory.join(FILES).display()))?;
        Ok(Some(Self { records, root, current: Piece::Raw { left: 0 } }))
    }

    /// The length of the tar. Reads the tar-split, but none of the files.
    ///
    /// # Errors
    /// The tar-split is damaged.
    pub(crate) fn length(mut self) -> io::Result<u64> {
        let mut total = 0;
        loop {
            match self.record()? {
                None => return Ok(total),
                Some(Record::Raw(length)) => {
                    // A compressed stream cannot be seeked, so the bytes are read to skip them.
                    total += length;
                    io::copy(&mut (&mut self.records).take(length), &mut io::sink())?;
                }
                Some(Record::File { length, .. }) => total += length,
                Some(Record::Segment { range, .. }) => total += range.end - range.start,
            }
        }
    }

    fn record(&mut self) -> io::Result<Option<Record>> {
        self.read_record()
            .map_err(|error| io::Error::other(format!("the record of the tar: {error}")))
    }

    fn read_record(&mut self) -> io::Result<Option<Record>> {
        let mut tag = [0];
        // The stream may end between two records, which is the end of the tar. Within a record
        // `read_exact` reports that as damage.
        if self.records.read(&mut tag)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.records.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        match tag[0] {
            RAW => Ok(Some(Record::Raw(length.into()))),
            FILE if length <= MAX_PATH => {
                let path = self.read_path(length)?;
                Ok(Some(Record::File { path, length: self.read_number()? }))
            }
            SEGMENT if length <= MAX_PATH => {
                let path = self.read_path(length)?;
                let file_length = self.read_number()?;
                let start = self.read_number()?;
                // The numbers in a damaged record may be anything. If a range is too long, reading
                // it fails.
                let end = start.saturating_add(self.read_number()?);
                Ok(Some(Record::Segment { path, file_length, range: start..end }))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no such record")),
        }
    }

    fn read_path(&mut self, length: u32) -> io::Result<PathBuf> {
        let mut path = vec![0; length as usize];
        self.records.read_exact(&mut path)?;
        Ok(OsStr::from_bytes(&path).into())
    }

    fn read_number(&mut self) -> io::Result<u64> {
        let mut number = [0; 8];
        self.records.read_exact(&mut number)?;
        Ok(u64::from_le_bytes(number))
    }

    /// Opens the next piece. `None` at the end of the tar.
    fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        Ok(match self.record()? {
            None => None,
            Some(Record::Raw(left)) => Some(Piece::Raw { left }),
            Some(Record::File { path, length }) => {
                let file = open(&self.root, &path, length)?;
                Some(Piece::File { file, path, left: length })
            }
            Some(Record::Segment { path, file_length, range }) => {
                let mut file = open(&self.root, &path, file_length)?;
                file.seek(SeekFrom::Start(range.start))?;
                Some(Piece::File { file, path, left: range.end - range.start })
            }
        })
    }

    /// Reads from the current piece. Returns 0 at its end.
    fn read_piece(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.current {
            Piece::Raw { left } => {
                let length = (&mut self.records).take(*left).read(buffer)?;
                *left -= length as u64;
                if length == 0 && *left > 0 && !buffer.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the record of the tar ends early",
                    ));
                }
                Ok(length)
            }
            Piece::File { file, path, left } => {
                let length = file.take(*left).read(buffer)?;
                *left -= length as u64;
                if length == 0 && *left > 0 && !buffer.is_empty() {
                    let told = format!("{} is {left} bytes too short", path.display());
                    return Err(io::Error::other(told));
                }
                Ok(length)
            }
        }
    }
}

impl Read for ReassembledTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.read_piece(buffer)?;
            // A piece that ends, or an empty file, is not the end of the tar.
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            match self.next_piece()? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
    }
}

/// Opens a file below `root`, and checks that it is a regular file of `length` bytes.
fn open(root: &OwnedFd, path: &Path, length: u64) -> io::Result<File> {
    let wrong = |what: String| io::Error::other(format!("{} {what}", path.display()));
    // Something else may have taken the place of the file. Opening a FIFO would block without
    // NONBLOCK, and following a link would verify another file than the container sees.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = open_in_root(root, path, flags)
        .map_err(|error| wrong(format!("cannot be opened: {error}")))?;
    let found = fstat(&file)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    if !is_file || found.st_size as u64 != length {
        return Err(wrong(format!("is not the file of {length} bytes that it was")));
    }
    Ok(file.into())
}
