//! What an open descriptor is, and to whom it is given: pipes, terminals, and the null device,
//! which an image or the host's root must not be able to pass off.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    CWD, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fcntl_setfl, fstat, makedev, openat2,
};

use crate::error::{Result, Step, failure};

/// `stream` itself, or the container's null device if it is the host's. Root in the container could
/// change the mode of a file that it has open, and that would be the mode of /dev/null for the
/// whole host. To be called in the container's root.
pub(crate) fn replace_null(stream: OwnedFd) -> Result<OwnedFd> {
    if !is_null(stream.as_fd()).step("stat a standard stream")? {
        return Ok(stream);
    }
    let access = rustix::fs::fcntl_getfl(&stream).step("fcntl")? & OFlags::RWMODE;
    open_null(access)
}

/// Changes the owner of those descriptors that are pipes. Anything else that a daemon may have
/// passed in, such as /dev/null or a file, keeps its owner.
pub(crate) fn chown_pipes(fds: &[BorrowedFd<'_>], uid: u32, gid: u32) {
    for fd in fds {
        if rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo()) {
            // EINVAL for an id that the user namespace does not map. The program can still use the
            // pipe that it has open; it only cannot open it again.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

/// Whether `at` is the device of this kind and number.
pub(crate) fn is_device(
    at: BorrowedFd<'_>,
    kind: FileType,
    number: Dev,
) -> rustix::io::Result<bool> {
    fstat(at).map(|stat| FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number)
}

/// Whether `at` is the null device, whatever its name is.
pub(crate) fn is_null(at: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    is_device(at, FileType::CharacterDevice, makedev(1, 3))
}

/// Opens /dev/null of the root that this process has.
///
/// # Errors
/// Also if it is anything else than the null device, as an image may have it (CVE-2025-31133).
pub(crate) fn open_null(access: OFlags) -> Result<OwnedFd> {
    // O_NONBLOCK until it is known what it is: a FIFO in its place would block.
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let null = openat2(CWD, "/dev/null", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .step_on("open", "/dev/null")?;
    if !is_null(null.as_fd()).step_on("stat", "/dev/null")? {
        return Err(failure("not the null device:", "/dev/null"));
    }
    fcntl_setfl(&null, access).step_on("fcntl", "/dev/null")?;
    Ok(null)
}
