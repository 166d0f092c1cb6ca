//! Opens paths inside a root that the image or the container has filled, and that is not trusted.
//!
//! openat2(2) resolves them below a descriptor of the root, with RESOLVE_IN_ROOT and no magic
//! links, so that no symbolic link and no `..` leads out, even one that is swapped in meanwhile.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::error::{Result, Step};

/// Opens the place `path` below the root (O_PATH).
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    open_below(
        root,
        path,
        flags | OFlags::PATH,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens the place `path` below the root, if no part of it is a link.
///
/// # Errors
/// ELOOP if one is.
pub(crate) fn open_plain(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    open_below(root, path, flags | OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

/// For how long a path is tried again. An attempt takes microseconds, so only a process that
/// renames without a pause can use all of it up, and then the start fails.
const PATIENCE: Duration = Duration::from_secs(1);

/// openat2(2) with these flags. It fails with EAGAIN if a rename or a mount, anywhere on the
/// machine, happens while it follows `..`, which links of images often have. That says nothing
/// about the path, so it is tried again.
pub(crate) fn open_below(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let begun = Instant::now();
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if begun.elapsed() < PATIENCE => {}
            result => return result,
        }
    }
}

/// Opens a path of this process as a place (O_PATH): a trusted one, since links are followed.
pub(crate) fn open_path(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the root directory of this process.
pub(crate) fn open_root() -> Result<OwnedFd> {
    open_path(Path::new("/"), OFlags::DIRECTORY).step_on("open", "/")
}
