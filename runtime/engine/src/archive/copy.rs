//! Files of one root directory into another one, as `COPY` of a Dockerfile does.
//!
//! Both are hostile: one is what a client has sent or an image holds, the other one is an image. No link
//! of either leads out of it.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Uid, fchown, fstat,
        futimens, linkat, mkdirat, mknodat, openat, readlinkat, symlinkat,
    },
    io::Errno,
};

use super::{
    attributes::attributes,
    metadata::Metadata,
    node,
    path::{ContainerPath, evaluate},
};

/// The mode of directories that a copy makes on its way, whatever the source's are.
const NEW_DIRECTORY: u32 = 0o755;

/// What the copies get instead of what the sources have.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// User and group.
    pub owner: Option<(u32, u32)>,
}

/// A path below a root directory.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub root: BorrowedFd<'a>,
    /// With or without a slash at its start. At the end of a destination, one means a directory.
    pub path: &'a str,
}

/// Copies a file, or what is in a directory. A link at the end of the source is followed, those below it
/// are copied. Directories that are missing are made.
///
/// # Errors
/// Those of the filesystem.
pub fn copy(from: Place<'_>, to: Place<'_>, options: CopyOptions) -> anyhow::Result<()> {
    let source = open_in_root(from.root, &ContainerPath::new(from.path).relative, OFlags::PATH);
    let source = source.context("source path not found")?;
    let stat = fstat(&source)?;
    let mut place = resolve(to)?;
    let mut copier = Copier { options, links: HashMap::new(), times: Vec::new() };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let target = make_directories(to.root, &place, options.owner)?;
        return copier.tree(&source, &target).context("failed to copy directory");
    }
    if to.path.ends_with('/') || is_directory(to.root, &place)? {
        place.push(ContainerPath::new(from.path).base());
    }
    let name = place.file_name().context("the destination has no name")?;
    let parent = place.parent().unwrap_or(Path::new(""));
    let parent = make_directories(to.root, parent, options.owner)
        .context("failed to create new directory")?;
    let path = Path::new(name);
    let entry = Entry { file: &source, stat: &stat, parent: &parent, name, path };
    copier.entry(&entry).context("failed to copy file")
}

/// Makes a directory with those above it, as `WORKDIR` does. Nothing is changed if it is there.
///
/// # Errors
/// Those of the filesystem.
pub fn make_directory(to: Place<'_>, owner: (u32, u32)) -> anyhow::Result<()> {
    make_directories(to.root, &resolve(to)?, Some(owner)).map(drop)
}

/// Where a path leads, without a slash at its start.
fn resolve(to: Place<'_>) -> anyhow::Result<PathBuf> {
    let place = evaluate(to.root, &ContainerPath::new(to.path).relative);
    let place = place.with_context(|| format!("resolve {}", to.path))?;
    Ok(place.strip_prefix("/").unwrap_or(&place).to_owned())
}

fn is_directory(root: BorrowedFd<'_>, path: &Path) -> anyhow::Result<bool> {
    match open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno).context("failed to query destination path"),
    }
}

/// Opens a directory, and makes those that are missing.
fn make_directories(
    root: BorrowedFd<'_>,
    path: &Path,
    owner: Option<(u32, u32)>,
) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    match open_in_root(root, path, flags) {
        Err(Errno::NOENT) => {}
        opened => return opened.with_context(|| format!("mkdir /{}", path.display())),
    }
    let mut walked = PathBuf::new();
    let mut directory = open_in_root(root, &walked, flags)?;
    for name in path {
        walked.push(name);
        directory = match open_in_root(root, &walked, flags) {
            Err(Errno::NOENT) => {
                mkdirat(&directory, name, Mode::from_raw_mode(NEW_DIRECTORY))?;
                let made = open_in_root(root, &walked, flags)?;
                let (uid, gid) = owner.unwrap_or((0, 0));
                fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                made
            }
            opened => opened.with_context(|| format!("mkdir /{}", walked.display()))?,
        };
    }
    Ok(directory)
}

/// A file of the source, and where its copy is to be.
struct Entry<'a> {
    /// Opened with O_PATH, which for a link is the link itself.
    file: &'a OwnedFd,
    stat: &'a Stat,
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// Below the target.
    path: &'a Path,
}

struct Copier {
    options: CopyOptions,
    /// Where files with several names are, below the target.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories and their times, which are set when everything in them is made.
    times: Vec<(PathBuf, Metadata)>,
}

impl Copier {
    /// Copies what is in a directory. Goes by a list, and not by calling itself: a client decides how
    /// deep its directories are.
    fn tree(&mut self, source: &OwnedFd, target: &OwnedFd) -> anyhow::Result<()> {
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
            let from = open_in_root(source, &path, flags).context("open directory")?;
            let to = open_in_root(target, &path, flags).context("open directory")?;
            for name in names(&from)? {
                let path = path.join(&name);
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&from, &name, flags, Mode::empty()).context("open")?;
                let stat = fstat(&file)?;
                let entry =
                    Entry { file: &file, stat: &stat, parent: &to, name: &name, path: &path };
                if self.is_link(&entry, target)? {
                    continue;
                }
                self.entry(&entry).with_context(|| path.display().to_string())?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    left.push(path);
                }
            }
        }
        for (path, metadata) in &self.times {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
            let directory = open_in_root(target, path, flags).context("open directory")?;
            futimens(&directory, &metadata.times()).context("set times")?;
        }
        Ok(())
    }

    /// Whether an entry is another name of a file that was copied, which its copy gets as well.
    fn is_link(&mut self, entry: &Entry<'_>, target: &OwnedFd) -> anyhow::Result<bool> {
        let Entry { stat, parent, name, path, .. } = *entry;
        if stat.st_nlink < 2 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(false);
        }
        let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) else {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
            return Ok(false);
        };
        let directory = first.parent().unwrap_or(Path::new(""));
        let directory = open_in_root(target, directory, OFlags::PATH | OFlags::DIRECTORY)?;
        if node::look(parent, name)?.is_some() {
            node::remove(parent, name).context("replace")?;
        }
        let first = first.file_name().context("a link without a name")?;
        linkat(&directory, first, parent, name, AtFlags::empty()).context("link")?;
        Ok(true)
    }

    /// Copies one entry. Of a directory, without what is in it.
    fn entry(&mut self, entry: &Entry<'_>) -> anyhow::Result<()> {
        let Entry { parent, name, path, .. } = *entry;
        let kind = FileType::from_raw_mode(entry.stat.st_mode);
        // A socket is nothing without the process that listens on it.
        if kind == FileType::Socket {
            return Ok(());
        }
        let mut metadata = metadata(entry, self.options);
        let is_directory = kind == FileType::Directory;
        if let Some(found) = node::look(parent, name)?
            && !(is_directory && FileType::from_raw_mode(found.st_mode) == FileType::Directory)
        {
            node::remove(parent, name).context("replace")?;
        }
        match kind {
            FileType::Directory => {
                match mkdirat(parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).context("make directory"),
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(parent, name, flags, Mode::empty()).context("open directory")?;
                metadata.xattrs = attributes(&reopen(entry.file)?);
                node::finish_directory(&made, &metadata)?;
                self.times.push((path.to_owned(), metadata));
                Ok(())
            }
            FileType::RegularFile => {
                let mut from = File::from(reopen(entry.file)?);
                metadata.xattrs = attributes(&from);
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let made = openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
                let mut made = File::from(made.context("make file")?);
                io::copy(&mut from, &mut made).context("copy")?;
                node::finish_file(&made, &metadata)
            }
            FileType::Symlink => {
                let target = readlinkat(entry.file, "", Vec::new()).context("read link")?;
                let target = OsStr::from_bytes(target.as_bytes());
                symlinkat(target, parent, name).context("make link")?;
                node::finish_other(parent, name, &metadata)
            }
            kind => {
                mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, entry.stat.st_rdev)
                    .context("make node")?;
                node::finish_other(parent, name, &metadata)
            }
        }
    }
}

fn metadata(entry: &Entry<'_>, options: CopyOptions) -> Metadata {
    let stat = entry.stat;
    let (uid, gid) = options.owner.unwrap_or((stat.st_uid, stat.st_gid));
    Metadata {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
        modified: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
        xattrs: Vec::new(),
    }
}

/// Opens for reading what is known to be a regular file or a directory.
pub(super) fn reopen(file: &OwnedFd) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context("open")
}

/// The names in a directory, sorted.
///
/// # Errors
/// Those of the filesystem.
pub fn names(directory: &OwnedFd) -> anyhow::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).context("read directory")? {
        let entry = entry.context("read directory")?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
