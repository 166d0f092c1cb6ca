//! Whiteouts: how a layer removes files of the layers below.
//!
//! In a tar they are files with special names (OCI image specification, layer.md, "Whiteouts"). For
//! overlayfs they are character devices with the number 0/0, and an attribute of directories.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::{
    fs::{AtFlags, FileType, Mode, Stat, makedev, mknodat, statat},
    io::Errno,
};

use super::refuse::refuse;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of aufs' internal files, which old images contain.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry means.
pub(super) enum Whiteout {
    /// It is not a whiteout.
    No,
    /// It is, and has been applied.
    Hidden,
    /// This directory is to be made opaque. That needs an attribute of `trusted`, and so a
    /// privilege that a process which reads tars should not have (xattr(7)).
    Opaque(PathBuf),
}

/// Applies the entry `name` at `path` in `parent` if it is a whiteout.
///
/// # Errors
/// `FailedPrecondition` if the whiteout does not name a file.
pub(super) fn apply(parent: &OwnedFd, path: &Path, name: &OsStr) -> anyhow::Result<Whiteout> {
    let name = name.as_bytes();
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(Whiteout::No) };
    let directory = path.parent().unwrap_or(Path::new(""));
    if name == OPAQUE {
        return Ok(Whiteout::Opaque(directory.to_owned()));
    }
    if name.starts_with(AUFS) {
        return Ok(Whiteout::Hidden);
    }
    hide(parent, directory, OsStr::from_bytes(hidden))
}

fn hide(parent: &OwnedFd, directory: &Path, hidden: &OsStr) -> anyhow::Result<Whiteout> {
    // mknodat(2) would fail for these as well, but with an error that does not mention the image.
    if hidden.is_empty() || hidden == "." || hidden == ".." {
        return Err(refuse("a whiteout that names no file"));
    }
    match mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        // The layer itself contains the file, which hides the lower one anyway. Only a directory
        // has to be made opaque, because overlayfs would merge it with the lower one.
        Err(Errno::EXIST) => {
            let found = statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => Ok(Whiteout::Opaque(directory.join(hidden))),
                _ => Ok(Whiteout::Hidden),
            }
        }
        result => result.map(|()| Whiteout::Hidden).context("make a whiteout"),
    }
}

/// Whether a file is a whiteout in overlayfs' form.
pub(super) fn is_whiteout(found: &Stat) -> bool {
    let kind = FileType::from_raw_mode(found.st_mode);
    kind == FileType::CharacterDevice && found.st_rdev == 0
}
