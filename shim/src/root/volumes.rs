//! Volumes that an image declares: each is a directory of the container's own, filled with what the
//! image has there.
//!
//! The source is walked by descriptor. Links are copied, and never followed: one that leads to a
//! file of the host would copy that into the volume (CVE-2022-23648).

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    layout,
    record::Stage,
    spec::{Mount, MountKind},
};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
        XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens,
        mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

use crate::{
    error::{Result, Step, invalid},
    mount::{api::clone_tree, inside::open_in_root, relabel::relabel},
    namespaces::idmap::Idmap,
    process::progress::stage,
};

/// How deep directories may be nested: every level of the walk holds several descriptors.
const MAX_DEPTH: usize = 256;
/// The longest value of an extended attribute, and the longest list of names (xattr(7)), in bytes.
const MAX_XATTR: usize = 64 << 10;

/// The volume of `request` as a detached mount; `None` if it is of another kind. `root` is the
/// container's root without its mounts. A volume that an earlier run has left is taken as it is.
pub(crate) fn prepare(
    root: BorrowedFd<'_>,
    dir: &Path,
    request: &Mount,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<Option<OwnedFd>> {
    let MountKind::Volume { name } = &request.kind else { return Ok(None) };
    let path = dir.join(layout::VOLUMES).join(name);
    let volume = match open_directory(&path) {
        Err(Errno::NOENT) => make(root, &path, request, idmap)?,
        found => found.step_on("open", &path)?,
    };
    label.map_or(Ok(()), |label| relabel(volume.as_fd(), &path, label))?;
    clone_tree(volume.as_fd(), false).step_on("clone mount of", &path).map(Some)
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a volume. It has its name when it is filled: one that was begun is begun anew.
fn make(
    root: BorrowedFd<'_>,
    path: &Path,
    request: &Mount,
    idmap: Option<&Idmap>,
) -> Result<OwnedFd> {
    let incomplete = path.with_extension("incomplete");
    match fs::remove_dir_all(&incomplete) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).step_on("remove", &incomplete);
        }
        _ => fs::create_dir_all(&incomplete).step_on("make", &incomplete)?,
    }
    let volume = open_directory(&incomplete).step_on("open", &incomplete)?;
    match open_in_root(root, &request.target, OFlags::DIRECTORY) {
        Ok(found) => {
            let source = open_again(&found).step_on("open", &request.target)?;
            copy_directory(&source, &volume, &mut Walk::default())
                .step_on("copy the image's files for volume", &request.target)?;
        }
        Err(Errno::NOENT) => {
            // The image has only declared the volume. It is empty and belongs to root, which in a
            // user namespace is another id.
            let (uid, gid) = idmap.map_or((0, 0), |idmap| (idmap.uid, idmap.gid));
            fchown(&volume, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .step_on("chown", &incomplete)?;
        }
        Err(Errno::NOTDIR) => {
            return Err(invalid("the image's volume is not a directory:", &request.target));
        }
        Err(errno) => return Err(errno).step_on("open", &request.target),
    }
    fs::rename(&incomplete, path).step_on("rename", &incomplete)?;
    Ok(volume)
}

/// Opens a directory for reading that was opened as a place only (O_PATH).
fn open_again(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    openat(place, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A walk in progress.
#[derive(Default)]
struct Walk {
    depth: usize,
    files: usize,
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, walk: &mut Walk) -> io::Result<()> {
    if walk.depth > MAX_DEPTH {
        return Err(Errno::LOOP.into());
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            // A large image takes longer than the daemon waits for a launch without progress.
            walk.files += 1;
            stage(Stage::Copy(walk.files));
            copy_entry(from, to, name, walk)?;
        }
    }
    finish(from.as_fd(), to.as_fd(), &fstat(from)?)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, walk: &mut Walk) -> io::Result<()> {
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
