//! What is left to do for the daemon in a layer that was unpacked, because it needs capabilities
//! with which the process that unpacks could do much else.
//!
//! The layer is as hostile as before, and so are these paths: they are resolved below its root.

use std::{os::fd::OwnedFd, path::Path};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chmodat, chownat, fsetxattr, futimens, makedev, mknodat, openat, statat, unlinkat,
        utimensat,
    },
    io::Errno,
};

use crate::{
    layer_dir::FILES,
    unpack::{Device, DeviceKind, Extracted},
};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Completes the layer in `directory`. Blocks.
///
/// # Errors
/// Errors of the filesystem; it does not support `trusted` attributes, without which overlayfs does
/// not work.
pub(super) fn finish(directory: &Path, files: &Extracted) -> anyhow::Result<()> {
    if files.opaque.is_empty() && files.devices.is_empty() {
        return Ok(());
    }
    let root = openat(CWD, directory.join(FILES), DIRECTORY, Mode::empty())
        .with_context(|| format!("open {}", directory.display()))?;
    for path in files.opaque.iter().map(Path::new) {
        let Some(opaque) = open_directory(&root, path)? else { continue };
        fsetxattr(&opaque, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
            .with_context(|| format!("mark {} opaque", path.display()))?;
    }
    for device in &files.devices {
        make_device(&root, device).with_context(|| format!("make {}", device.path.display()))?;
    }
    Ok(())
}

/// Puts a device node in the place of the file that has its attributes.
///
/// It is harmless in a layer: the container's device cgroup decides which devices it may use.
fn make_device(root: &OwnedFd, device: &Device) -> anyhow::Result<()> {
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let Some(parent) = open_directory(root, parent)? else { return Ok(()) };
    let found = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => found,
        // A later entry has replaced it, under another name of its directory.
        _ => return Ok(()),
    };
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character => FileType::CharacterDevice,
    };
    let times = times(&statat(&parent, "", AtFlags::EMPTY_PATH).context("stat")?);
    unlinkat(&parent, name, AtFlags::empty()).context("unlink")?;
    let number = makedev(device.major, device.minor);
    mknodat(&parent, name, kind, Mode::empty(), number).context("mknod")?;
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
    // chmod follows links, but `name` has just been created and is none.
    let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
    chmodat(&parent, name, mode, AtFlags::empty()).context("chmod")?;
    utimensat(&parent, name, &self::times(&found), AtFlags::SYMLINK_NOFOLLOW)
        .context("set times")?;
    futimens(&parent, &times).context("set the times of its directory")
}

fn times(of: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: of.st_mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// `None` if a later entry has replaced the directory.
fn open_directory(root: &OwnedFd, path: &Path) -> anyhow::Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match open_in_root(root, path, DIRECTORY) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some).with_context(|| format!("open {}", path.display())),
    }
}
