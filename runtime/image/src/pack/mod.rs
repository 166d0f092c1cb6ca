//! A tree of files as a tar: what a container has, for `docker cp` and `docker export`, and the upper
//! directory of an overlay, which becomes a layer.
//!
//! The files are hostile, and others may change them meanwhile: only what is known to be a regular
//! file or a directory is opened for reading, and by the descriptor that it was known by. Names are
//! sorted, and headers hold nothing but what the files have, so that the same files give the same tar.

mod holes;
mod xattrs;

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

use anyhow::{Context, bail};
use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};
use tracing::debug;

use self::{holes::Segments, xattrs::Attributes};

/// Bytes of a name that fit into a header.
const SHORT_NAME: usize = 100;
/// Bytes of a block of a tar.
const BLOCK: usize = 512;
/// Size of the buffer for copying content.
const BUFFER: usize = 128 << 10;

/// What a tree becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarForm {
    /// A tar whose names are those of the files below this one. What cannot be read is left out, as
    /// dockerd does.
    Below(Vec<u8>),
    /// The same with names that are relative to the top, which has none and is left out.
    OfRoot,
    /// A layer of an image, from the upper directory of an overlay: with names as `OfRoot` has them,
    /// and what the directory hides of the layers below in the form of the OCI image specification.
    /// What cannot be read fails.
    Layer,
}

/// Writes `top`, of which only the path need be open, and everything below it to `to`. Blocks.
///
/// # Errors
/// Errors of `to`; for a layer those of the filesystem as well, and what a layer cannot say.
pub fn pack(top: &OwnedFd, form: &TarForm, to: impl Write) -> anyhow::Result<()> {
    let found = fstat(top).context("stat")?;
    let mut packer =
        Packer { to: Builder::new(to), form, seen: HashMap::new(), buffer: vec![0; BUFFER] };
    packer.walk(top, &found)?;
    Ok(packer.to.finish()?)
}

/// Whether nothing is in the directory `top`.
///
/// # Errors
/// It cannot be read.
pub(super) fn is_empty(top: &OwnedFd) -> anyhow::Result<bool> {
    Ok(read_names(top, Path::new("")).context("read the directory")?.is_empty())
}

impl TarForm {
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
            Self::OfRoot | Self::Layer => {
                Some(path.as_os_str().as_bytes().to_vec()).filter(|name| !name.is_empty())
            }
        }
    }
}

struct Packer<'a, W: Write> {
    to: Builder<W>,
    form: &'a TarForm,
    /// The names of files that have several, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// Why a file is not in the tar.
enum Fault {
    /// It cannot be read.
    File(Errno),
    /// No layer can say what overlayfs has made of it.
    Overlay(&'static str),
    /// Nobody takes the tar any more.
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

impl<W: Write> Packer<'_, W> {
    /// Adds `top`, and what is below it. The paths that are still to be visited are kept
    /// and not their descriptors, so that a deep tree does not use them up; a path that is longer
    /// than the kernel takes is left out.
    fn walk(&mut self, top: &OwnedFd, found: &Stat) -> anyhow::Result<()> {
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let added = match self.form.of(&path) {
                Some(name) if path.as_os_str().is_empty() => self.add(top, found, name),
                Some(name) => self.open_and_add(top, &path, name),
                None => Ok(true),
            };
            let children = match added {
                Ok(true) if is_directory => children(top, &path).map_err(Fault::File),
                Ok(_) => continue,
                Err(fault) => Err(fault),
            };
            match children {
                Ok(children) => left.extend(children),
                // Others have removed it since its name was read.
                Err(Fault::File(Errno::NOENT)) => {}
                Err(Fault::File(errno)) if *self.form == TarForm::Layer => {
                    return Err(errno).with_context(|| format!("read {}", path.display()));
                }
                Err(Fault::File(errno)) => debug!(path = %path.display(), %errno, "not packed"),
                Err(Fault::Overlay(why)) => bail!("{} {why}", path.display()),
                Err(Fault::Client(error)) => return Err(error.into()),
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
                let attributes = Attributes::read(reopen(file, OFlags::DIRECTORY)?);
                if attributes.has("trusted.overlay.redirect") {
                    self.refuse_in_layer("was renamed by overlayfs, with redirect_dir")?;
                }
                self.write(header, &name, b"", &attributes.records())?;
                if *self.form == TarForm::Layer && attributes.is_opaque() {
                    self.opaque(found, name)?;
                }
                return Ok(true);
            }
            FileType::Symlink => {
                let target = readlinkat(file, "", Vec::new())?.into_bytes();
                header.set_entry_type(EntryType::Symlink);
                self.write(header, &name, &target, &[])?;
            }
            FileType::CharacterDevice if *self.form == TarForm::Layer && found.st_rdev == 0 => {
                self.whiteout(header, &name)?;
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

    /// Of overlayfs, with what a layer is not made of. Other tars show it as it is.
    fn refuse_in_layer(&self, why: &'static str) -> Result<(), Fault> {
        match self.form {
            TarForm::Layer => Err(Fault::Overlay(why)),
            TarForm::Below(_) | TarForm::OfRoot => Ok(()),
        }
    }

    /// Says that the file `name` of the layers below is gone.
    fn whiteout(&mut self, mut header: Header, name: &[u8]) -> io::Result<()> {
        let parent = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = [&name[..parent], b".wh.", &name[parent..]].concat();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        self.write(header, &name, b"", &[])
    }

    /// Says that nothing of the layers below is in the directory `name`, which ends with a slash.
    fn opaque(&mut self, found: &Stat, mut name: Vec<u8>) -> io::Result<()> {
        name.extend_from_slice(b".wh..wh..opq");
        let mut header = header(found);
        header.set_entry_type(EntryType::Regular);
        header.set_mode(found.st_mode & 0o777);
        header.set_mtime(0);
        self.write(header, &name, b"", &[])
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
        let attributes = Attributes::read(&file);
        if attributes.has("trusted.overlay.metacopy") {
            self.refuse_in_layer("has no content but that of the layers below, with metacopy")?;
        }
        let xattrs = attributes.records();
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
        loop {
            match bytes.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => self.to.get_mut().write_all(&self.buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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

/// The paths in the directory `path`, last one first.
fn children(top: &OwnedFd, path: &Path) -> rustix::io::Result<Vec<PathBuf>> {
    let mut names = read_names(top, path)?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names.into_iter().map(|name| path.join(name)).collect())
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
