//! A tar into a directory of a container, as `PUT /containers/X/archive` asks for.

use std::{
    cell::Cell,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, anyhow, bail};
use berth_base::{
    error::{Error, Kind, Result},
    open_in_root::open_in_root,
};
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, fstat, futimens, linkat, makedev, mkdirat, mknodat,
        openat, symlinkat,
    },
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{
    ContainerFiles,
    content::{Bounded, copy_with_holes},
    metadata::Metadata,
    node,
    path::{ContainerPath, evaluate},
};

/// Bytes of the headers of one entry, so that a tar cannot fill the memory with a name.
const MAX_HEADER: u64 = 1 << 20;

/// How to extract.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtractOptions {
    /// Refuses to replace a directory by something else, and the other way round
    /// (`noOverwriteDirNonDir`).
    pub keeps_directories: bool,
    /// User and group of all files, in the place of those of the tar (`copyUIDGID`, for which they
    /// are those of the container's process).
    pub owner: Option<(u32, u32)>,
}

impl ContainerFiles<'_> {
    /// The directory that `path` leads to, as text: by this it is decided whether a volume or the
    /// root is mounted read-only there.
    ///
    /// # Errors
    /// `NotFound` in the words of dockerd; `InvalidArgument` if it is not a directory.
    pub fn extraction_point(&self, path: &str) -> Result<PathBuf> {
        self.open_point(path)?;
        evaluate(self.root, &ContainerPath::new(path).relative)
            .map_err(|errno| self.unreachable(path, errno))
    }

    /// Makes the files of the tar `from` in the directory `path`. Links in the names of entries
    /// are followed within that directory, as if it were the whole filesystem.
    ///
    /// Stops at the first entry that cannot be made; what was made before stays, as in dockerd.
    ///
    /// # Errors
    /// `NotFound` and `InvalidArgument` for the path; `ResourceExhausted` if the disk is full; else
    /// `Internal`, with the entry.
    pub fn extract(&self, path: &str, from: impl Read, options: ExtractOptions) -> Result<()> {
        let directory = self.open_point(path)?;
        let shown = evaluate(self.root, &ContainerPath::new(path).relative)
            .map_err(|errno| self.unreachable(path, errno))?;
        let budget = Rc::new(Cell::new(MAX_HEADER));
        let ended = Rc::new(Cell::new(false));
        let mut archive = Archive::new(Bounded::new(from, budget.clone(), ended.clone()));
        let mut writer = Writer { directory, shown, options, times: Vec::new() };
        let malformed = |error: io::Error| match (ended.get(), budget.get()) {
            (true, _) => Error::new(Kind::Internal, "unexpected EOF"),
            (false, left) if left == 0 || error.kind() == io::ErrorKind::OutOfMemory => {
                Error::from(anyhow::Error::from(error).context("read tar"))
            }
            (false, _) => Error::new(Kind::Internal, "archive/tar: invalid tar header"),
        };
        for entry in archive.entries().map_err(malformed)? {
            let mut entry = entry.map_err(malformed)?;
            // The content may be as long as the disk is large.
            budget.set(u64::MAX);
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            writer.add(&mut entry).map_err(|error| match error.downcast::<Error>() {
                Ok(refusal) => refusal,
                Err(error) => Error::from(error).during(name),
            })?;
            io::copy(&mut entry, &mut io::sink()).map_err(malformed)?;
            budget.set(MAX_HEADER);
        }
        writer.set_times().map_err(Error::from)
    }

    fn open_point(&self, path: &str) -> Result<OwnedFd> {
        let place = ContainerPath::new(path);
        let fault = |errno| self.unreachable(path, errno);
        // A link at the end is followed, whatever the path ends with.
        let found = open_in_root(self.root, &place.relative, OFlags::PATH).map_err(fault)?;
        match FileType::from_raw_mode(fstat(&found).map_err(fault)?.st_mode) {
            FileType::Directory => Ok(found),
            _ => Err(Error::invalid("extraction point is not a directory")),
        }
    }
}

struct Writer {
    directory: OwnedFd,
    /// The path of the directory, for errors.
    shown: PathBuf,
    options: ExtractOptions,
    /// Directories and their times, which are set when everything in them is made.
    times: Vec<(PathBuf, Metadata)>,
}

impl Writer {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        // `git archive` writes one with the id of the commit. It is not a file.
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = self.local(&entry.path_bytes())?;
        let Some(name) = path.file_name() else { return Ok(()) };
        let is_directory = entry.header().entry_type() == EntryType::Directory;
        let metadata = Metadata::read(entry, self.options.owner)?;
        let parent = self.parent(&path)?;
        self.make_room(&parent, name, &path, is_directory)?;
        match entry.header().entry_type() {
            EntryType::Directory => {
                match mkdirat(&parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).context("make directory"),
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&parent, name, flags, Mode::empty()).context("open directory")?;
                node::finish_directory(&made, &metadata)?;
                self.times.push((path, metadata));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR);
                let mut file = File::from(file.context("make file")?);
                copy_with_holes(entry, &mut file)?;
                node::finish_file(&file, &metadata)
            }
            EntryType::Symlink => {
                // Any target is allowed: it is only text here.
                let target = entry.link_name_bytes().context("a link without a target")?;
                let target = OsStr::from_bytes(&target);
                symlinkat(target, &parent, name).context("make link")?;
                node::finish_other(&parent, name, &metadata)
            }
            EntryType::Link => self.hard_link(entry, &parent, name, &metadata),
            kind => {
                make_node(entry, kind, &parent, name)?;
                node::finish_other(&parent, name, &metadata)
            }
        }
    }

    /// The name of an entry as a path that only leads downwards. Empty for the directory itself.
    fn local(&self, name: &[u8]) -> anyhow::Result<PathBuf> {
        let mut path = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(part) => path.push(part),
                // The parent of the root is the root.
                Component::ParentDir if path.pop() || self.shown == Path::new("/") => {}
                Component::ParentDir => {
                    let (name, place) = (String::from_utf8_lossy(name), self.shown.display());
                    let text = format!("\"{name}\" is outside of \"{place}\"");
                    bail!(Error::new(Kind::Internal, text));
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Ok(path)
    }

    /// Opens the directory in which `path` is to be made. Directories that are missing are made.
    fn parent(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        match open_in_root(&self.directory, parent, flags) {
            Err(Errno::NOENT) => {}
            result => return result.context("open directory"),
        }
        let mut walked = PathBuf::new();
        let mut directory = open_in_root(&self.directory, &walked, flags)?;
        for name in parent {
            walked.push(name);
            directory = match open_in_root(&self.directory, &walked, flags) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, name, Mode::from_raw_mode(0o755))
                        .context("make directory")?;
                    open_in_root(&self.directory, &walked, flags)
                }
                result => result,
            }
            .context("open directory")?;
        }
        Ok(directory)
    }

    /// Removes what is in the place of an entry, except for a directory where one is to be.
    fn make_room(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        is_directory: bool,
    ) -> anyhow::Result<()> {
        let Some(found) = node::look(parent, name).context("stat")? else { return Ok(()) };
        let was_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if was_directory && is_directory {
            return Ok(());
        }
        if self.options.keeps_directories && was_directory != is_directory {
            let kinds = match was_directory {
                true => ["directory", "non-directory"],
                false => ["non-directory", "directory"],
            };
            let (path, place) = (self.shown.join(path), self.shown.display());
            let text = format!(
                "cannot overwrite {} \"{}\" with {} \"{place}\"",
                kinds[0],
                path.display(),
                kinds[1]
            );
            bail!(Error::new(Kind::Internal, text));
        }
        node::remove(parent, name).context("replace")
    }

    fn hard_link<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        metadata: &Metadata,
    ) -> anyhow::Result<()> {
        let target = self.local(&entry.link_name_bytes().context("a link without a target")?)?;
        let target_name = target.file_name().context("a hard link to the root")?;
        let directory = target.parent().unwrap_or(Path::new(""));
        let directory = open_in_root(&self.directory, directory, OFlags::PATH | OFlags::DIRECTORY);
        let directory = directory.context("open the target of a hard link")?;
        // Without AT_SYMLINK_FOLLOW, so that a link to a link is another name for it.
        linkat(&directory, target_name, parent, name, AtFlags::empty())
            .with_context(|| format!("link to {}", target.display()))?;
        node::finish_other(parent, name, metadata)
    }

    /// Sets the times of directories.
    fn set_times(&self) -> anyhow::Result<()> {
        for (path, metadata) in &self.times {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
            // A later entry, or the container, may have replaced it.
            if let Ok(directory) = open_in_root(&self.directory, path, flags) {
                futimens(&directory, &metadata.times()).context("set times")?;
            }
        }
        Ok(())
    }
}

/// Makes a FIFO or a device. Whoever may ask for this is root's equal, as is everybody at the
/// engine's socket.
fn make_node<R: Read>(
    entry: &Entry<'_, R>,
    kind: EntryType,
    parent: &OwnedFd,
    name: &OsStr,
) -> anyhow::Result<()> {
    let kind = match kind {
        EntryType::Fifo => FileType::Fifo,
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        other => return Err(anyhow!("unhandled tar header type {}", other.as_byte())),
    };
    let header = entry.header();
    let device = match kind {
        FileType::Fifo => 0,
        _ => makedev(
            header.device_major().context("device")?.unwrap_or_default(),
            header.device_minor().context("device")?.unwrap_or_default(),
        ),
    };
    mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device).context("make node")
}
