//! The file or directory below the root that a mount is put on, made if it is missing.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, mkdirat, mknodat, readlinkat},
    io::Errno,
};

use crate::{
    error::{Result, Step, failure},
    mount::inside::{open_in_root, open_plain},
};

/// Opens the directory `path` below the root for a file system of the kernel's, and makes it if it
/// is missing. No part of it may be a link: the image would have /proc mounted somewhere else, and
/// show files of its own at /proc (CVE-2019-19921).
pub(crate) fn ensure_plain_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let mut opened = open_plain(root, path, OFlags::DIRECTORY);
    if opened.as_ref().is_err_and(|errno| *errno == Errno::NOENT) {
        ensure_directory(root, path)?;
        opened = open_plain(root, path, OFlags::DIRECTORY);
    }
    match opened {
        Err(Errno::LOOP) => {
            Err(failure("the image has a link where only a directory may be:", path))
        }
        result => result.step_on("open mount target", path),
    }
}

/// How many dangling links are followed for one target, as many as path_resolution(7) allows.
const MAX_LINKS: u32 = 40;

/// Opens the directory `path` below the root, and makes what is missing of it.
pub(crate) fn ensure_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    ensure(root, path, FileType::Directory, MAX_LINKS)
}

/// Opens the file `path` below the root, and makes it and its directories if they are missing.
pub(crate) fn ensure_file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    ensure(root, path, FileType::RegularFile, MAX_LINKS)
}

fn ensure(root: BorrowedFd<'_>, path: &Path, kind: FileType, links: u32) -> Result<OwnedFd> {
    let directory = kind == FileType::Directory;
    let flags = if directory { OFlags::DIRECTORY } else { OFlags::empty() };
    match open_in_root(root, path, flags) {
        Err(Errno::NOENT) => {}
        result => return result.step_on("open mount target", path),
    }
    let (parent_path, name) = split(path)?;
    let parent = ensure(root, &parent_path, FileType::Directory, links)?;
    let made = match directory {
        true => mkdirat(&parent, &name, Mode::from_raw_mode(0o755)),
        false => mknodat(&parent, &name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // openat2(2) found nothing, and yet the name is taken: it is a link to something that does
        // not exist. Its target is made, below the same root.
        Err(Errno::EXIST) if links > 0 => {
            let target = readlinkat(&parent, &name, Vec::new()).step_on("read link", path)?;
            let target = parent_path.join(OsStr::from_bytes(target.as_bytes()));
            ensure(root, &target, kind, links - 1)
        }
        result => {
            result.step_on("make mount target", path)?;
            // O_NOFOLLOW, in case a link has taken the place of what was just made.
            open_in_root(parent.as_fd(), &name, flags | OFlags::NOFOLLOW)
                .step_on("open mount target", path)
        }
    }
}

/// Splits a path into its directory and its name.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, PathBuf)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.into())),
        _ => Err(failure("not a mount target", path)),
    }
}
