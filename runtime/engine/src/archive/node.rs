//! Files that are made in a directory of a container, which may change it at the same time.
//!
//! Between making a file and setting its mode, a process of the container may put a link in its
//! place. What follows links is therefore done by descriptor; what is done by name is what never
//! follows one.

use std::{
    ffi::OsStr,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use anyhow::Context;
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, XattrFlags, chmodat, chownat, fchmod, fchown,
        fsetxattr, fstat, futimens, lsetxattr, openat, statat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::metadata::{Metadata, tolerate};

/// What is at `name`. `None` if there is nothing.
pub(super) fn look(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Removes what is at `name`, with everything below it.
pub(super) fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        // The standard library opens each directory below it by the descriptor of the one above,
        // and follows no link (CVE-2022-21658).
        Err(Errno::ISDIR) => fs::remove_dir_all(below(parent, name)),
        result => Ok(result?),
    }
}

/// A path for calls that take no descriptor. It leads through the descriptor of the directory, and
/// so nowhere else.
fn below(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)
}

/// Sets everything but the times of a directory, which change with what is made in it.
pub(super) fn finish_directory(directory: impl AsFd, metadata: &Metadata) -> anyhow::Result<()> {
    fchown(&directory, Some(metadata.uid), Some(metadata.gid)).context("chown")?;
    // After chown(2), which clears the set-user-ID bit and removes capabilities.
    fchmod(&directory, metadata.mode).context("chmod")?;
    for (key, value) in &metadata.xattrs {
        tolerate(fsetxattr(&directory, key, value, XattrFlags::empty())).context("setxattr")?;
    }
    Ok(())
}

/// Sets everything of a regular file, whose content is complete.
pub(super) fn finish_file(file: impl AsFd, metadata: &Metadata) -> anyhow::Result<()> {
    finish_directory(&file, metadata)?;
    futimens(&file, &metadata.times()).context("set times")
}

/// Sets everything of a link, FIFO or device.
pub(super) fn finish_other(
    parent: &OwnedFd,
    name: &OsStr,
    metadata: &Metadata,
) -> anyhow::Result<()> {
    let owner = (Some(metadata.uid), Some(metadata.gid));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
    change_mode(parent, name, metadata.mode).context("chmod")?;
    for (key, value) in &metadata.xattrs {
        let path = below(parent, name);
        tolerate(lsetxattr(path, key, value, XattrFlags::empty())).context("setxattr")?;
    }
    utimensat(parent, name, &metadata.times(), AtFlags::SYMLINK_NOFOLLOW).context("set times")
}

/// chmod(2) of exactly the file that is there now, if it is not a link: those have no mode.
fn change_mode(parent: &OwnedFd, name: &OsStr, mode: Mode) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Symlink {
        return Ok(());
    }
    // fchmod(2) takes no descriptor of O_PATH. This leads to the same inode.
    chmodat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), mode, AtFlags::empty())
}
