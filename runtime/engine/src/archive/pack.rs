//! A path of a container as a tar, as `GET /containers/X/archive` and `/export` give it.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use berth_base::{error::Result, open_in_root::open_in_root};
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};
use tracing::debug;

use super::{ContainerFiles, holes::Segments, metadata::read_xattrs, path::ContainerPath};

/// Bytes of a name that fit into a header.
const SHORT_NAME: usize = 100;
/// Bytes of a block of a tar.
const BLOCK: usize = 512;

impl ContainerFiles<'_> {
    /// Writes `path` and everything below it to `to` as a tar, in the order of names. A link at
    /// the end of the path is taken itself, unless the path ends with a slash.
    ///
    /// Names begin with the last one of the path, `.` if it ends so, and a slash for the root. A
    /// container may change its files meanwhile: what cannot be read is left out, as dockerd does.
    ///
    /// # Errors
    /// `NotFound` in the words of dockerd; errors of the filesystem at the path itself; errors of
    /// `to`.
    pub fn pack(&self, path: &str, to: impl Write) -> Result<()> {
        let place = ContainerPath::new(path);
        let file = place.open(self.root).map_err(|errno| self.unreachable(path, errno))?;
        let found = fstat(&file).map_err(|errno| self.unreachable(path, errno))?;
        let base = match place.base().as_bytes() {
            b"/" => Vec::new(),
            base => base.to_vec(),
        };
        write_tree(file, found, &Names::Below(base), to)
    }

    /// Writes all files to `to` as a tar, with names relative to the root.
    ///
    /// # Errors
    /// As `pack`.
    pub fn export(&self, to: impl Write) -> Result<()> {
        let fault = |errno| self.unreachable("/", errno);
        let root = self.root.try_clone_to_owned().map_err(anyhow::Error::from)?;
        let found = fstat(&root).map_err(fault)?;
        write_tree(root, found, &Names::OfRoot, to)
    }
}

fn write_tree(top: OwnedFd, found: Stat, names: &Names, to: impl Write) -> Result<()> {
    let mut packer = Packer { to: Builder::new(to), seen: HashMap::new() };
    packer
        .walk(top, found, names)
        .and_then(|()| packer.to.finish())
        .map_err(anyhow::Error::from)?;
    Ok(())
}

/// How the files of a tree are called in the tar.
enum Names {
    /// By their paths below this name.
    Below(Vec<u8>),
    /// By their paths. The top has none, and is left out.
    OfRoot,
}

impl Names {
    /// The name of the file at `path`, relative to the top.
    fn of(&self, path: &Path) -> Option<Vec<u8>> {
        match self {
            Self::Below(base) => {
                let mut name = base.clone();
                if !path.as_os_str().is_empty() {
                    name.push(b'/');
                    name.extend_from_slice(path.as_os_str().as_bytes());
                }
                Some(name)
            }
            Self::OfRoot => {
                Some(path.as_os_str().as_bytes().to_vec()).filter(|name| !name.is_empty())
            }
        }
    }
}

struct Packer<W: Write> {
    to: Builder<W>,
    /// The names of files that have several, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
}

/// A file that could not be read, which is left out; or a client that is gone.
enum Fault {
    File(Errno),
    Client(io::Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::File(errno)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}

impl<W: Write> Packer<W> {
    /// Adds `top`, and what is below it. The paths that are still to be visited are kept
    /// and not their descriptors, so that a deep tree does not use them up; a path that is longer
    /// than the kernel takes is left out.
    fn walk(&mut self, top: OwnedFd, found: Stat, names: &Names) -> io::Result<()> {
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let added = match names.of(&path) {
                Some(name) if path.as_os_str().is_empty() => self.add(&top, &found, name),
                Some(name) => self.open_and_add(&top, &path, name),
                None => Ok(true),
            };
            match added {
                Ok(true) if is_directory => left.extend(children(&top, &path)),
                Ok(_) => {}
                Err(Fault::File(errno)) => debug!(path = %path.display(), %errno, "not packed"),
                Err(Fault::Client(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn open_and_add(&mut self, top: &OwnedFd, path: &Path, name: Vec<u8>) -> Result<bool, Fault> {
        let file = open_in_root(top, path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let found = fstat(&file)?;
        self.add(&file, &found, name)
    }

    /// Adds one file, and says whether it is a directory.
    fn add(&mut self, file: &OwnedFd, found: &Stat, mut name: Vec<u8>) -> Result<bool, Fault> {
        let kind = FileType::from_raw_mode(found.st_mode);
        let mut header = header(found);
        match kind {
            FileType::RegularFile => {
                if let Some(first) = self.other_name(found, &name) {
                    header.set_entry_type(EntryType::Link);
                    return Ok(self.write(header, &name, &first, &[]).map(|()| false)?);
                }
                return self.regular(file, found, header, &name).map(|()| false);
            }
            FileType::Directory => {
                if name.last() != Some(&b'/') {
                    name.push(b'/');
                }
                header.set_entry_type(EntryType::Directory);
                let xattrs = read_xattrs(&reopen(file, OFlags::DIRECTORY)?);
                return Ok(self.write(header, &name, b"", &xattrs).map(|()| true)?);
            }
            FileType::Symlink => {
                let target = readlinkat(file, "", Vec::new())?.into_bytes();
                header.set_entry_type(EntryType::Symlink);
                self.write(header, &name, &target, &[])?;
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_entry_type(match kind {
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Char,
                });
                header.set_device_major(major(found.st_rdev))?;
                header.set_device_minor(minor(found.st_rdev))?;
                self.write(header, &name, b"", &[])?;
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.write(header, &name, b"", &[])?;
            }
            // A tar has no form for sockets.
            FileType::Socket | FileType::Unknown => {}
        }
        Ok(false)
    }

    /// The name under which this file is in the tar already. Else this one is noted.
    fn other_name(&mut self, found: &Stat, name: &[u8]) -> Option<Vec<u8>> {
        if found.st_nlink < 2 {
            return None;
        }
        let key = (found.st_dev, found.st_ino);
        let first = self.seen.get(&key).cloned();
        if first.is_none() {
            self.seen.insert(key, name.to_vec());
        }
        first
    }

    fn regular(
        &mut self,
        file: &OwnedFd,
        found: &Stat,
        mut header: Header,
        name: &[u8],
    ) -> Result<(), Fault> {
        let mut file = File::from(reopen(file, OFlags::empty())?);
        let xattrs = read_xattrs(&file);
        let size = u64::try_from(found.st_size).unwrap_or(0);
        let blocks = u64::try_from(found.st_blocks).unwrap_or(0);
        // A filesystem that cannot tell its holes has none.
        let Some(segments) = Segments::find(&file, size, blocks).ok().flatten() else {
            file.rewind()?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            self.write(header, name, b"", &xattrs)?;
            self.content(&mut file, size)?;
            return Ok(self.pad(size)?);
        };
        let length = segments.length();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(length);
        let map = segments.describe(&mut header, size);
        self.write(header, name, b"", &xattrs)?;
        self.to.get_mut().write_all(&map)?;
        for segment in segments.iter() {
            file.seek(SeekFrom::Start(segment.start))?;
            self.content(&mut file, segment.end - segment.start)?;
        }
        Ok(self.pad(length)?)
    }

    /// Writes `length` bytes of the file. If it has become shorter, the rest is zeros: the header
    /// has promised them.
    fn content(&mut self, file: &mut File, length: u64) -> io::Result<()> {
        let mut bytes = file.take(length).chain(io::repeat(0)).take(length);
        io::copy(&mut bytes, self.to.get_mut()).map(drop)
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        let rest = (length % BLOCK as u64) as usize;
        match rest {
            0 => Ok(()),
            rest => self.to.get_mut().write_all(&[0; BLOCK][rest..]),
        }
    }

    /// Writes a header, and before it what does not fit into it. Names are bytes: whatever the
    /// container calls its files comes out again.
    fn write(
        &mut self,
        mut header: Header,
        name: &[u8],
        link: &[u8],
        xattrs: &[(String, Vec<u8>)],
    ) -> io::Result<()> {
        let mut extensions: Vec<(&str, &[u8])> = Vec::new();
        let old = header.as_old_mut();
        for (key, value, field) in
            [("path", name, &mut old.name), ("linkpath", link, &mut old.linkname)]
        {
            let fits = value.len().min(SHORT_NAME);
            field[..fits].copy_from_slice(&value[..fits]);
            if value.len() > SHORT_NAME || !value.is_ascii() {
                extensions.push((key, value));
            }
        }
        extensions.extend(xattrs.iter().map(|(key, value)| (key.as_str(), value.as_slice())));
        if !extensions.is_empty() {
            self.to.append_pax_extensions(extensions)?;
        }
        header.set_cksum();
        self.to.get_mut().write_all(header.as_bytes())
    }
}

/// The fields that all kinds of files have. Times are in whole seconds, as dockerd sends them.
fn header(found: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(found.st_mode & 0o7777);
    header.set_uid(found.st_uid.into());
    header.set_gid(found.st_gid.into());
    header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
    header
}

/// Opens for reading what `file` refers to, which is a regular file or a directory: exactly that
/// inode, whatever its path leads to by now.
fn reopen(file: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = flags | OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

/// The paths in the directory `path`, last one first. Empty if it cannot be read.
fn children(top: &OwnedFd, path: &Path) -> Vec<PathBuf> {
    let mut names = read_names(top, path).unwrap_or_default();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names.into_iter().map(|name| path.join(name)).collect()
}

fn read_names(top: &OwnedFd, path: &Path) -> rustix::io::Result<Vec<OsString>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
    let mut directory = Dir::new(open_in_root(top, path, flags)?)?;
    let mut names = Vec::new();
    while let Some(entry) = directory.read() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}
