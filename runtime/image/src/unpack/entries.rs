//! Creates the files of a layer from the entries of its tar.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, futimens, linkat, mkdirat, mknodat,
        openat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use tar::{Entry, EntryType};

use super::{
    contents::{Device, DeviceKind, Extracted},
    metadata::{Metadata, sparse_headers},
    names::relative_path,
    refuse::{damaged, refuse, unreadable},
    sparse::{SparseCopier, SparseHeaders},
    tar_split::TarSplit,
    whiteout::{self, Whiteout},
};
use crate::usage::{BLOCK, Usage, occupied};

/// Limits for one layer. Real images stay far below them, and a node survives them.
const MAX_BYTES: u64 = 64 << 30;
const MAX_INODES: u64 = 4 << 20;
/// Size of the buffer for copying content.
const BUFFER: usize = 128 << 10;

/// Creates the files of one layer.
///
/// No other process uses the directory yet, so there are no races. But files and links from earlier
/// entries of the same tar are as hostile as the entry at hand.
pub(super) struct LayerWriter<'a> {
    root: BorrowedFd<'a>,
    tar_split: &'a TarSplit<'a>,
    sparse: SparseCopier<'a>,
    /// The directory of the previous entry, because most entries are siblings. This keeps a
    /// descriptor and not a resolved path: if an entry replaces a directory by a link, a path would
    /// lead elsewhere (CVE-2025-47290).
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories that exist without an entry so far.
    implied: BTreeSet<PathBuf>,
    /// Directories that hide what is below them.
    opaque: BTreeSet<PathBuf>,
    /// Device nodes by path. This process may not make any.
    devices: BTreeMap<PathBuf, Device>,
    /// Modification times of directories. They are set at the end, because creating a file changes
    /// the time of its directory.
    times: BTreeMap<PathBuf, Timespec>,
    usage: Usage,
    buffer: Vec<u8>,
}

/// What was in the place of a new directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Whiteout,
    NoWhiteout,
}

/// The path of a file, and its sparse headers if it has any.
struct Place<'a> {
    path: &'a Path,
    sparse: Option<SparseHeaders>,
}

impl<'a> LayerWriter<'a> {
    pub(super) fn new(
        root: BorrowedFd<'a>,
        tar_split: &'a TarSplit<'a>,
        sparse: SparseCopier<'a>,
    ) -> Self {
        Self {
            root,
            tar_split,
            sparse,
            parent: None,
            implied: BTreeSet::new(),
            opaque: BTreeSet::new(),
            devices: BTreeMap::new(),
            times: BTreeMap::new(),
            usage: Usage::default(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Counts a file of `length` bytes.
    pub(super) fn count_file(&mut self, length: u64) {
        self.usage.bytes += occupied(length);
        self.usage.inodes += 1;
    }

    /// Creates the file of one entry.
    ///
    /// # Errors
    /// `FailedPrecondition` if a layer must not contain the entry; errors of the filesystem.
    pub(super) fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        // Global PAX headers are not files. `git archive` writes one with the id of the commit.
        if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
            return Ok(());
        }
        let mut sparse = sparse_headers(entry)?;
        let real_name = sparse.as_mut().and_then(|sparse| sparse.name.take());
        let path = relative_path(&real_name.map_or_else(|| entry.path_bytes(), Cow::Owned))?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.add_root(entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.open_parent(parent_path)?;
        let result = self.place(entry, &parent, &name, Place { path: &path, sparse });
        self.parent = Some((parent_path.to_owned(), parent));
        self.usage.inodes += 1;
        if self.usage.bytes > MAX_BYTES || self.usage.inodes > MAX_INODES {
            return Err(refuse("the layer is larger than 64 GiB or has more than 4 million files"));
        }
        result
    }

    /// Applies the entry of the layer's root, `./`.
    fn add_root<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> anyhow::Result<()> {
        let metadata = Metadata::read(entry)?;
        self.times.insert(PathBuf::new(), metadata.modified);
        metadata.apply_to_directory(&self.root.try_clone_to_owned()?)
    }

    fn place<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        place: Place<'_>,
    ) -> anyhow::Result<()> {
        match whiteout::apply(parent, place.path, name)? {
            Whiteout::No => {}
            Whiteout::Hidden => return Ok(()),
            Whiteout::Opaque(directory) => {
                self.opaque.insert(directory);
                return Ok(());
            }
        }
        // This entry replaces whatever an earlier one has made here.
        self.devices.remove(place.path);
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(entry, parent, name, place.path),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, parent, name, place)
            }
            EntryType::Link => self.hard_link(entry, parent, name, place.path),
            EntryType::Symlink => self.symlink(entry, parent, name),
            EntryType::Fifo => self.fifo(entry, parent, name),
            EntryType::Char => self.device(entry, parent, place.path, DeviceKind::Character),
            EntryType::Block => self.device(entry, parent, place.path, DeviceKind::Block),
            other => Err(refuse(format!(
                "entries of type {:?} are not known",
                char::from(other.as_byte())
            ))),
        }
    }

    /// Opens a directory. Creates it and its parents if they are missing, because a tar may leave
    /// out their entries.
    fn open_parent(&mut self, path: &Path) -> anyhow::Result<OwnedFd> {
        if let Some((cached, descriptor)) = self.parent.take()
            && cached == path
        {
            return Ok(descriptor);
        }
        match open_directory(self.root, path) {
            Err(Errno::NOENT) => {}
            result => return result.with_context(|| format!("open directory {}", path.display())),
        }
        let mut directory = self.root.try_clone_to_owned()?;
        let mut walked = PathBuf::new();
        for part in path {
            walked.push(part);
            // Opened from the root every time, because links may lead anywhere within the layer.
            directory = match open_directory(self.root, &walked) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, part, Mode::from_raw_mode(0o755))
                        .with_context(|| format!("make directory {}", walked.display()))?;
                    self.implied.insert(walked.clone());
                    self.usage.inodes += 1;
                    self.usage.bytes += BLOCK;
                    open_directory(self.root, &walked)
                }
                result => result,
            }
            .with_context(|| format!("open directory {}", walked.display()))?;
        }
        Ok(directory)
    }

    fn directory<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> anyhow::Result<()> {
        let metadata = Metadata::read(entry)?;
        self.usage.bytes += BLOCK;
        self.implied.remove(path);
        self.times.insert(path.to_owned(), metadata.modified);
        if self.make_directory(parent, name)? == Replaced::Whiteout {
            // The lower directory must stay hidden.
            self.opaque.insert(path.to_owned());
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty()).context("open directory")?;
        metadata.apply_to_directory(&directory)
    }

    /// Creates a directory, unless an earlier entry has created or implied it.
    fn make_directory(&self, parent: &OwnedFd, name: &OsStr) -> anyhow::Result<Replaced> {
        let mode = Mode::from_raw_mode(0o755);
        let mut replaced = Replaced::NoWhiteout;
        match mkdirat(parent, name, mode) {
            Err(Errno::EXIST) => {
                let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                    self.tar_split.end();
                    if whiteout::is_whiteout(&found) {
                        replaced = Replaced::Whiteout;
                    }
                    unlinkat(parent, name, AtFlags::empty()).context("replace")?;
                    mkdirat(parent, name, mode).context("make directory")?;
                }
            }
            result => result.context("make directory")?,
        }
        Ok(replaced)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        place: Place<'_>,
    ) -> anyhow::Result<()> {
        // With EXCL and NOFOLLOW, so that a link from an earlier entry is replaced and never
        // followed.
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = self.replacing(parent, name, || openat(parent, name, flags, mode))?;
        let metadata = Metadata::read(entry)?;
        // Checked before writing, so that an entry with a huge size does not fill the disk first.
        let claimed = place.sparse.as_ref().map_or(entry.size(), |sparse| sparse.length);
        if self.usage.bytes.saturating_add(claimed) > MAX_BYTES {
            return Err(refuse("the layer is larger than 64 GiB"));
        }
        let file = File::from(file);
        self.usage.bytes += self.copy(entry, &file, place)?;
        metadata.apply_to_file(&file)
    }

    /// Copies the content of a file. Returns how many bytes it occupies on disk.
    fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        file: &File,
        place: Place<'_>,
    ) -> anyhow::Result<u64> {
        let Place { path, sparse } = place;
        let buffer = &mut self.buffer;
        if let Some(mut headers) = sparse {
            // Outside of `sparse_file`, because a map is not content of the file. The tar-split has
            // to record its bytes.
            let map = self.sparse.map(&mut headers, entry)?;
            let segments = (headers.length, map.as_slice());
            let written = self
                .tar_split
                .sparse_file(path, || self.sparse.copy_segments(segments, entry, file, buffer))?;
            return Ok(written.blocks * BLOCK);
        }
        let is_old_sparse = entry.header().entry_type().is_gnu_sparse();
        let (length, occupied) = if is_old_sparse {
            self.sparse.count_old_segments(entry.raw_file_position())?;
            let written = self
                .tar_split
                .sparse_file(path, || self.sparse.copy_old_form(entry, file, buffer))?;
            (written.length, written.blocks * BLOCK)
        } else {
            let length = self.tar_split.file(path, || copy(entry, file, buffer))?;
            (length, occupied(length))
        };
        match length == entry.size() {
            true => Ok(occupied),
            false => Err(refuse("the tar ends within its content")),
        }
    }

    fn symlink<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> anyhow::Result<()> {
        // Any target is allowed. It is only text here, and is later resolved within the layer or
        // within a container.
        let target = entry
            .link_name_bytes()
            .ok_or_else(|| refuse("a symbolic link without a target"))?
            .into_owned();
        let target = CString::new(target)?;
        self.replacing(parent, name, || symlinkat(&target, parent, name))?;
        Metadata::read(entry)?.apply_to_symlink(parent, name)
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> anyhow::Result<()> {
        let target =
            entry.link_name_bytes().ok_or_else(|| refuse("a hard link without a target"))?;
        let target = relative_path(&target).map_err(|error| error.context("hard link"))?;
        let Some(target_name) = target.file_name() else {
            return Err(refuse("a hard link to the root"));
        };
        let missing =
            || refuse(format!("hard link to {}, which is not in this layer", target.display()));
        let target_parent = target.parent().unwrap_or(Path::new(""));
        let directory = open_directory(self.root, target_parent).map_err(|_| missing())?;
        // Without AT_SYMLINK_FOLLOW, so a hard link to a symbolic link is another name for the link
        // itself.
        let linked = self.replacing(parent, name, || {
            linkat(&directory, target_name, parent, name, AtFlags::empty())
        });
        match linked {
            Err(Errno::NOENT) => return Err(missing()),
            result => result.with_context(|| format!("link to {}", target.display()))?,
        }
        if let Some(device) = self.devices.get(&target).cloned() {
            self.devices.insert(path.to_owned(), Device { path: path.into(), ..device });
        }
        Ok(())
    }

    fn fifo<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> anyhow::Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        self.replacing(parent, name, || mknodat(parent, name, FileType::Fifo, mode, 0))?;
        Metadata::read(entry)?.apply_to_node(parent, name)
    }

    /// Notes a device node, and creates an empty file with its attributes in its place: whoever can
    /// make the node of a disk can also open it.
    fn device<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        path: &Path,
        kind: DeviceKind,
    ) -> anyhow::Result<()> {
        let [major, minor] = device_number(entry)?;
        let name = path.file_name().unwrap_or_default();
        let mode = Mode::RUSR | Mode::WUSR;
        if (kind, major, minor) == (DeviceKind::Character, 0, 0) {
            // This one is a whiteout, and not a device (mknod(2)).
            self.replacing(parent, name, || {
                mknodat(parent, name, FileType::CharacterDevice, mode, 0)
            })?;
        } else {
            let regular = FileType::RegularFile;
            self.replacing(parent, name, || mknodat(parent, name, regular, mode, 0))?;
            let device = Device { path: path.into(), kind, major, minor };
            self.devices.insert(path.to_owned(), device);
        }
        Metadata::read(entry)?.apply_to_node(parent, name)
    }

    /// Runs `make`, which creates `name`. If an earlier entry has created that, removes it first.
    fn replacing<T>(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                // The content of the earlier entry is part of the tar, but will be in no file.
                self.tar_split.end();
                match unlinkat(parent, name, AtFlags::empty()) {
                    // Only an empty directory can be replaced; otherwise rmdir(2) fails, and the
                    // layer is refused.
                    Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR)?,
                    result => result?,
                }
                make()
            }
            result => result,
        }
    }

    /// What was written, and what is left to do for a process with more privileges.
    pub(super) fn into_extracted(self) -> Extracted {
        Extracted {
            usage: self.usage,
            implied: self.implied.into_iter().map(PathBuf::into_os_string).collect(),
            opaque: self.opaque.into_iter().map(PathBuf::into_os_string).collect(),
            devices: self.devices.into_values().collect(),
        }
    }

    /// Sets the times of directories. Call it when all files exist.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn set_directory_times(&self) -> anyhow::Result<()> {
        for (path, time) in &self.times {
            let directory = match open_directory(self.root, path) {
                Ok(directory) => directory,
                // A later entry has replaced the directory.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => bail!("open directory {}: {error}", path.display()),
            };
            let times = Timestamps { last_access: *time, last_modification: *time };
            futimens(&directory, &times).context("set times")?;
        }
        Ok(())
    }
}

/// Opens a directory of the layer. Symbolic links are resolved as if the layer were the whole
/// filesystem.
fn open_directory(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open_in_root(root, path, OFlags::DIRECTORY | OFlags::RDONLY)
}

/// Major and minor number.
fn device_number<R: Read>(entry: &Entry<'_, R>) -> anyhow::Result<[u32; 2]> {
    let part = |number: io::Result<Option<u32>>| {
        number.map(Option::unwrap_or_default).map_err(|error| damaged("device", &error))
    };
    let header = entry.header();
    Ok([part(header.device_major())?, part(header.device_minor())?])
}

/// Copies everything. Errors in reading are the tar's fault, errors in writing the disk's.
fn copy(from: &mut impl Read, mut to: &File, buffer: &mut [u8]) -> anyhow::Result<u64> {
    let mut total = 0;
    loop {
        let length = from.read(buffer).map_err(|error| unreadable(&error))?;
        if length == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..length]).context("write")?;
        total += length as u64;
    }
}
