//! The files of an image as one tree, looked at without mounting it anywhere.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};

/// Whether there is a `path` in the tree of `layers`, topmost first; links are followed and do not lead out.
pub(crate) fn contains(layers: &[PathBuf], path: &Path) -> rustix::io::Result<bool> {
    let root = match merge(layers) {
        // Linux before 6.5 has no `lowerdir+`: the mount itself will tell.
        Err(Errno::INVAL) => return Ok(true),
        result => result?,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A detached mount, which goes with its descriptor.
fn merge(layers: &[PathBuf]) -> rustix::io::Result<OwnedFd> {
    if let [only] = layers {
        return openat(CWD, only, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    }
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    fsconfig_create(&overlay)?;
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}
