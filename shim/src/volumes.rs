//! Volumes that an image declares: a directory of the container's own, filled once with what the image has there.
//!
//! The source is walked by descriptor, links are copied and never followed (CVE-2022-23648).

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
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
        fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, mknodat, openat, readlinkat, statat,
        symlinkat,
    },
    io::Errno,
};

use crate::{
    error::{Result, Step, failure},
    mounts,
    namespaces::Idmap,
    rootfs::open_in_root,
    run, selinux,
};

/// Every level of the walk holds two descriptors.
const MAX_DEPTH: usize = 256;
/// As much as the kernel keeps in one (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// The volume of `request` as a detached mount; `None` if it is of another kind.
pub(crate) fn prepare(
    root: BorrowedFd<'_>,
    dir: &Path,
    request: &Mount,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<Option<OwnedFd>> {
    let MountKind::Volume { name } = &request.kind else { return Ok(None) };
    let path = dir.join(layout::VOLUMES).join(name);
    fs::create_dir_all(&path).step_on("make", &path)?;
    let volume = openat(CWD, &path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step_on("open", &path)?;
    match open_in_root(root, &request.target, OFlags::DIRECTORY) {
        Ok(found) => {
            let source = open_again(&found).step_on("open", &request.target)?;
            copy_directory(&source, &volume, &mut Walk::default())
                .step_on("copy the image's files for volume", &request.target)?;
        }
        Err(Errno::NOENT) => {
            let (uid, gid) = idmap.map_or((0, 0), |idmap| (idmap.uid, idmap.gid));
            fchown(&volume, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).step_on("chown", &path)?;
        }
        Err(Errno::NOTDIR) => return Err(failure("the image's volume is not a directory:", &request.target)),
        Err(errno) => return Err(errno).step_on("open", &request.target),
    }
    label.map_or(Ok(()), |label| selinux::relabel(volume.as_fd(), &path, label))?;
    mounts::clone_tree(volume.as_fd(), false).step_on("clone mount of", &path).map(Some)
}

/// For reading, what was opened as a place only.
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
            walk.files += 1;
            run::stage(Stage::Copy(walk.files));
            copy_entry(from, to, name, walk)?;
        }
    }
    finish(from.as_fd(), to.as_fd(), &fstat(from)?)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, walk: &mut Walk) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = |at: &OwnedFd, flags: OFlags| openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RWXU);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            walk.depth += 1;
            copy_directory(&open(from, OFlags::DIRECTORY)?, &open(to, OFlags::DIRECTORY)?, walk)?;
            walk.depth -= 1;
            return Ok(());
        }
        FileType::RegularFile => {
            let source = open(from, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let target = open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            // Shares the blocks where the filesystem can.
            let (mut source, mut target) = (File::from(source), File::from(target));
            io::copy(&mut source, &mut target)?;
            return finish(source.as_fd(), target.as_fd(), &stat);
        }
        FileType::Symlink => symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?,
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

/// Owner, mode and times, in the order in which none undoes another.
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

/// File capabilities and what users put there; the rest is of overlayfs or of the host's security module.
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
