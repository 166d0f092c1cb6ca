//! Checks that an image contains a path, for `image_sub_path` of image volumes (KEP 4639).

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use berth_base::open_in_root::open_in_root;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

/// Whether `path` exists in the merged tree of the directories `layers`, topmost first. Symbolic
/// links are followed and do not lead out of the image.
///
/// # Errors
/// The layers could not be merged, or the path could not be looked up.
pub fn contains_path(layers: &[PathBuf], path: &Path) -> rustix::io::Result<bool> {
    let root = match merge(layers) {
        // Linux before 6.5 does not have the option `lowerdir+`. There the check is left to the
        // shim, whose mount fails if the path is missing.
        Err(Errno::INVAL) => return Ok(true),
        result => result?,
    };
    match open_in_root(&root, path, OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens the merged tree as a detached mount: no other process sees it, and it goes away with its
/// descriptor.
fn merge(layers: &[PathBuf]) -> rustix::io::Result<OwnedFd> {
    // Without an upper directory overlayfs requires at least two lower ones.
    if let [only] = layers {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return openat(CWD, only, flags, Mode::empty());
    }
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        // One call for each directory: fsconfig(2) limits a string to 256 bytes, which all of them
        // together would exceed.
        fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    fsconfig_create(&overlay)?;
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}
