//! The entries of a layer's tar as files below one directory, whiteouts in the terms of overlayfs.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
        fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};
use tar::{Entry, EntryType};

use super::{BLOCK, BUFFER, occupied, tape::Tape};
use crate::error::Error;

/// Of one layer, unpacked.
const MAX_BYTES: u64 = 64 << 30;
const MAX_INODES: u64 = 4 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs' own books, which old images carry.
const AUFS: &[u8] = b".wh..wh.";

/// A layer in the making.
pub(super) struct Layer<'a> {
    root: BorrowedFd<'a>,
    tape: &'a Tape,
    /// The directory of the entry before: most entries are siblings.
    parent: Option<(PathBuf, OwnedFd)>,
    pub implied: BTreeSet<PathBuf>,
    /// Of directories, set last: every file made inside changes them.
    times: BTreeMap<PathBuf, Timespec>,
    pub bytes: u64,
    pub inodes: u64,
    buffer: Vec<u8>,
}

fn refuse(what: impl Into<String>) -> anyhow::Error {
    Error::precondition(what).into()
}

fn damaged(field: &str, error: &std::io::Error) -> anyhow::Error {
    refuse(format!("{field}: {error}"))
}

/// A name of a tar as components that can only go down.
///
/// # Errors
/// `FailedPrecondition` for one that is absolute, or has `..`.
pub(crate) fn inside(name: &[u8]) -> anyhow::Result<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            Component::RootDir => return Err(refuse("absolute names are refused")),
            Component::ParentDir | Component::Prefix(_) => return Err(refuse("names with .. are refused")),
        }
    }
    Ok(path)
}

impl<'a> Layer<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, tape: &'a Tape) -> Self {
        let (implied, times) = (BTreeSet::new(), BTreeMap::new());
        Self { root, tape, parent: None, implied, times, bytes: 0, inodes: 0, buffer: vec![0; BUFFER] }
    }

    /// A file of so many bytes.
    pub(super) fn count(&mut self, length: u64) {
        self.bytes += occupied(length);
        self.inodes += 1;
    }

    pub(super) fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = inside(&entry.path_bytes())?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The layer's own root.
            let root = self.root.try_clone_to_owned()?;
            self.times.insert(PathBuf::new(), modified(entry)?);
            return self.finish_directory(entry, &root);
        };
        let parent = self.open_parent(path.parent().unwrap_or(Path::new("")))?;
        let result = self.place(entry, &parent, &name, &path);
        self.parent = Some((path.parent().unwrap_or(Path::new("")).to_owned(), parent));
        self.inodes += 1;
        if self.bytes > MAX_BYTES || self.inodes > MAX_INODES {
            return Err(refuse("the layer is larger than 64 GiB or has more than 4 million files"));
        }
        result
    }

    fn place<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> anyhow::Result<()> {
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(parent, name.as_bytes(), hidden);
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                self.bytes += BLOCK;
                self.implied.remove(path);
                self.times.insert(path.to_owned(), modified(entry)?);
                let directory = self.make_directory(parent, name)?;
                self.finish_directory(entry, &directory)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = self.replacing(parent, name, || {
                    openat(
                        parent,
                        name,
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::RUSR | Mode::WUSR,
                    )
                })?;
                self.fill_file(entry, file, path)
            }
            EntryType::Link => {
                let target = inside(&entry.link_name_bytes().ok_or_else(|| refuse("a hard link without a target"))?)
                    .map_err(|error| error.context("hard link"))?;
                self.hard_link(&target, parent, name)
            }
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| refuse("a symbolic link without a target"))?.into_owned();
                let target = CString::new(target)?;
                self.replacing(parent, name, || symlinkat(&target, parent, name))?;
                finish_node(entry, parent, name, None)
            }
            EntryType::Fifo => self.node(entry, parent, name, FileType::Fifo),
            EntryType::Char => self.node(entry, parent, name, FileType::CharacterDevice),
            EntryType::Block => self.node(entry, parent, name, FileType::BlockDevice),
            other => Err(refuse(format!("entries of type {:?} are not known", char::from(other.as_byte())))),
        }
    }

    /// Opens a directory, making what is missing on the way: a tar may leave out parents.
    fn open_parent(&mut self, path: &Path) -> anyhow::Result<OwnedFd> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
        {
            return Ok(fd);
        }
        match open_inside(self.root, path) {
            Err(Errno::NOENT) => {}
            result => return result.with_context(|| format!("open directory {}", path.display())),
        }
        let mut directory = self.root.try_clone_to_owned()?;
        let mut walked = PathBuf::new();
        for part in path {
            walked.push(part);
            directory = match open_inside(self.root, &walked) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, part, Mode::from_raw_mode(0o755))
                        .with_context(|| format!("make directory {}", walked.display()))?;
                    self.implied.insert(walked.clone());
                    self.inodes += 1;
                    self.bytes += BLOCK;
                    open_inside(self.root, &walked)
                }
                result => result,
            }
            .with_context(|| format!("open directory {}", walked.display()))?;
        }
        Ok(directory)
    }

    fn finish_directory<R: Read>(&self, entry: &mut Entry<'_, R>, directory: &OwnedFd) -> anyhow::Result<()> {
        let (uid, gid, mode) = attributes(entry)?;
        fchown(directory, Some(uid), Some(gid)).context("chown")?;
        fchmod(directory, mode).context("chmod")?;
        for (name, value) in extended(entry)? {
            tolerate(fsetxattr(directory, &name, &value, XattrFlags::empty()), &name)?;
        }
        Ok(())
    }

    fn fill_file<R: Read>(&mut self, entry: &mut Entry<'_, R>, file: OwnedFd, path: &Path) -> anyhow::Result<()> {
        let xattrs = extended(entry)?;
        let (uid, gid, mode) = attributes(entry)?;
        let time = modified(entry)?;
        if self.bytes.saturating_add(entry.size()) > MAX_BYTES {
            return Err(refuse("the layer is larger than 64 GiB"));
        }
        let mut file = File::from(file);
        let length = match entry.header().entry_type() {
            // Holes and data in turn: it stays on the tape as it is.
            EntryType::GNUSparse => copy(entry, &mut file, &mut self.buffer),
            _ => self.tape.file(path, || copy(entry, &mut file, &mut self.buffer)),
        }?;
        if length != entry.size() {
            return Err(refuse("the tar ends within its content"));
        }
        self.bytes += occupied(length);
        if !uid.is_root() || !gid.is_root() {
            fchown(&file, Some(uid), Some(gid)).context("chown")?;
        }
        // After chown, which takes set-user-ID away, and before what hangs on the inode.
        fchmod(&file, mode).context("chmod")?;
        for (name, value) in xattrs {
            tolerate(fsetxattr(&file, &name, &value, XattrFlags::empty()), &name)?;
        }
        futimens(&file, &Timestamps { last_access: time, last_modification: time }).context("set times")
    }

    fn hard_link(&mut self, target: &Path, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        let Some(target_name) = target.file_name() else {
            return Err(refuse("a hard link to the root"));
        };
        let missing = || refuse(format!("hard link to {}, which is not in this layer", target.display()));
        let directory = open_inside(self.root, target.parent().unwrap_or(Path::new(""))).map_err(|_| missing())?;
        match self.replacing(parent, name, || linkat(&directory, target_name, parent, name, AtFlags::empty())) {
            Err(Errno::NOENT) => Err(missing()),
            result => result.with_context(|| format!("link to {}", target.display())),
        }
    }

    fn node<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        kind: FileType,
    ) -> anyhow::Result<()> {
        let header = entry.header();
        let device = match kind {
            FileType::Fifo => 0,
            _ => {
                let number = |number: std::io::Result<Option<u32>>| number.map_err(|error| damaged("device", &error));
                makedev(number(header.device_major())?.unwrap_or(0), number(header.device_minor())?.unwrap_or(0))
            }
        };
        self.replacing(parent, name, || mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device))?;
        let mode = attributes(entry)?.2;
        finish_node(entry, parent, name, Some(mode))
    }

    /// Runs `make`; what an earlier entry put under the name goes first.
    fn replacing<T>(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                // What the tar says of it is nowhere any more.
                self.tape.end();
                match unlinkat(parent, name, AtFlags::empty()) {
                    Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR)?,
                    result => result?,
                }
                make()
            }
            result => result,
        }
    }

    /// A directory where a whiteout was hides what is below it.
    fn make_directory(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<OwnedFd> {
        let mut opaque = false;
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {
                let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
                let kind = FileType::from_raw_mode(found.st_mode);
                if kind != FileType::Directory {
                    self.tape.end();
                    opaque = kind == FileType::CharacterDevice && found.st_rdev == 0;
                    unlinkat(parent, name, AtFlags::empty()).context("replace")?;
                    mkdirat(parent, name, Mode::from_raw_mode(0o755)).context("make directory")?;
                }
            }
            result => result.context("make directory")?,
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty()).context("open directory")?;
        if opaque {
            make_opaque(&directory)?;
        }
        Ok(directory)
    }

    pub(super) fn set_times(&self) -> anyhow::Result<()> {
        for (path, time) in &self.times {
            let directory = match open_inside(self.root, path) {
                Ok(directory) => directory,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => bail!("open directory {}: {error}", path.display()),
            };
            futimens(&directory, &Timestamps { last_access: *time, last_modification: *time }).context("set times")?;
        }
        Ok(())
    }
}

/// Symbolic links on the way are followed as if the layer were the whole world.
fn open_inside(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn make_opaque(directory: &OwnedFd) -> anyhow::Result<()> {
    fsetxattr(directory, c"trusted.overlay.opaque", b"y", XattrFlags::empty()).context("mark the directory opaque")
}

/// OCI image specification, "Whiteouts", in the terms of overlayfs.
fn whiteout(parent: &OwnedFd, name: &[u8], hidden: &[u8]) -> anyhow::Result<()> {
    if name == OPAQUE {
        return make_opaque(parent);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    let hidden = OsStr::from_bytes(hidden);
    if hidden.is_empty() || hidden == "." || hidden == ".." {
        return Err(refuse("a whiteout of nothing"));
    }
    match mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        // The layer brings its own: a directory then must not show the lower one's content.
        Err(Errno::EXIST) => {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, hidden, flags, Mode::empty()).map_or(Ok(()), |directory| make_opaque(&directory))
        }
        result => result.context("make a whiteout"),
    }
}

/// Owner, time and, unless it is a symbolic link, mode of what has no descriptor.
fn finish_node<R: Read>(
    entry: &mut Entry<'_, R>,
    parent: &OwnedFd,
    name: &OsStr,
    mode: Option<Mode>,
) -> anyhow::Result<()> {
    let (uid, gid, _) = attributes(entry)?;
    let time = modified(entry)?;
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
    if let Some(mode) = mode {
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).context("chmod")?;
    }
    let xattrs = extended(entry)?;
    if !xattrs.is_empty() {
        use std::os::fd::AsRawFd;
        let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        for (key, value) in xattrs {
            tolerate(lsetxattr(&path, &key, &value, XattrFlags::empty()), &key)?;
        }
    }
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).context("set times")
}

fn attributes<R: Read>(entry: &Entry<'_, R>) -> anyhow::Result<(Uid, Gid, Mode)> {
    let header = entry.header();
    let id = |id: u64| {
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| refuse(format!("owner {id} is out of range")))
    };
    let mode = Mode::from_raw_mode(header.mode().map_err(|error| damaged("mode", &error))? & 0o7777);
    Ok((
        Uid::from_raw(id(header.uid().map_err(|error| damaged("uid", &error))?)?),
        Gid::from_raw(id(header.gid().map_err(|error| damaged("gid", &error))?)?),
        mode,
    ))
}

fn modified<R: Read>(entry: &Entry<'_, R>) -> anyhow::Result<Timespec> {
    let seconds = entry.header().mtime().map_err(|error| damaged("mtime", &error))?;
    Ok(Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 })
}

/// Extended attributes of PAX headers, but not those that overlayfs would obey.
fn extended<R: Read>(entry: &mut Entry<'_, R>) -> anyhow::Result<Vec<(OsString, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions().map_err(|error| damaged("PAX header", &error))? else {
        return Ok(Vec::new());
    };
    let mut attributes = Vec::new();
    for extension in extensions {
        let extension = extension.map_err(|error| damaged("PAX header", &error))?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        if !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") {
            attributes.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(attributes)
}

/// A file system without the attribute is not a reason to refuse an image.
fn tolerate(result: rustix::io::Result<()>, name: &OsStr) -> anyhow::Result<()> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM) => {
            tracing::debug!(attribute = %name.to_string_lossy(), "extended attribute not kept");
            Ok(())
        }
        result => result.with_context(|| format!("set extended attribute {}", name.to_string_lossy())),
    }
}

/// Reading errors are the tar's, writing errors the disk's.
fn copy(from: &mut impl Read, to: &mut File, buffer: &mut [u8]) -> anyhow::Result<u64> {
    let mut total = 0;
    loop {
        let length = from.read(buffer).map_err(|error| refuse(format!("read tar: {error}")))?;
        if length == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..length]).context("write")?;
        total += length as u64;
    }
}
