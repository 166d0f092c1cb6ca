//! Copying a directory by descriptor, for volumes that are filled with what an image has in their
//! place. A link that leads to a file of the host must not copy that (CVE-2022-23648).

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat,
        mknodat, openat, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

/// How deep directories may be nested: every level of the walk holds several descriptors.
const MAX_DEPTH: usize = 256;
/// The longest value of an extended attribute, and the longest list of names (xattr(7)), in bytes.
const MAX_XATTR: usize = 64 << 10;

/// Copies what is in the directory `from` into the directory `to`, which is empty, with owners, modes,
/// times, file capabilities and the attributes of users, those of the directory itself included. Links
/// are copied, and never followed. `progress` hears how many files there are so far; so many there are
/// in the end.
///
/// # Errors
/// Of the file systems; ELOOP for directories that are nested too deep. A part may have been copied.
pub fn copy_tree(
    from: &OwnedFd,
    to: &OwnedFd,
    progress: &mut dyn FnMut(usize),
) -> io::Result<usize> {
    let mut walk = Walk { depth: 0, files: 0, progress };
    copy_directory(from, to, &mut walk)?;
    Ok(walk.files)
}

/// A walk in progress.
struct Walk<'a> {
    depth: usize,
    files: usize,
    progress: &'a mut dyn FnMut(usize),
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, walk: &mut Walk<'_>) -> io::Result<()> {
    if walk.depth > MAX_DEPTH {
        return Err(Errno::LOOP.into());
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            walk.files += 1;
            (walk.progress)(walk.files);
            copy_entry(from, to, name, walk)?;
        }
    }
    finish(from.as_fd(), to.as_fd(), &fstat(from)?)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, walk: &mut Walk<'_>) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let from_child = open_entry(from, name, OFlags::DIRECTORY)?;
            let to_child = open_entry(to, name, OFlags::DIRECTORY)?;
            walk.depth += 1;
            copy_directory(&from_child, &to_child, walk)?;
            walk.depth -= 1;
            return Ok(());
        }
        FileType::RegularFile => {
            // O_NONBLOCK, as for every file that an image may have made: a FIFO must not block.
            let source = open_entry(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let target = open_entry(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            // std uses copy_file_range(2), which shares the blocks if the file system can.
            let mut source = File::from(source);
            let mut target = File::from(target);
            io::copy(&mut source, &mut target)?;
            return finish(source.as_fd(), target.as_fd(), &stat);
        }
        FileType::Symlink => symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?,
        // FIFOs, sockets and devices are copied as such: nothing is read from them.
        kind => mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?,
    }
    Ok(chownat(
        to,
        name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Opens an entry of a directory itself, not what it may link to. The mode counts if it is made,
/// and is replaced by that of the source at the end.
fn open_entry(at: &OwnedFd, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RWXU)
}

/// Copies owner, mode, attributes and times. The owner comes first: chown(2) clears set-user-ID
/// bits and file capabilities.
fn finish(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_xattrs(from, to)?;
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    };
    Ok(futimens(to, &times)?)
}

/// Copies file capabilities and the attributes of users. All others belong to overlayfs or to the
/// host's security module.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        result => result?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if name == c"security.capability" || name.to_bytes().starts_with(b"user.") {
            let mut value = vec![0_u8; MAX_XATTR];
            let length = fgetxattr(from, name, &mut value[..])?;
            fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
        }
    }
    Ok(())
}
