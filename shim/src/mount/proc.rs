//! /proc of a PID namespace that this process is not in. One that mounted it from inside could be
//! traced there by others while it has the privileges that mounting takes.
//!
//! Since Linux 6.18 a new /proc can be told its PID namespace (`pidns`). Before, an existing one
//! has to be copied: the first process of a pod leaves one while it is still alone, and a single
//! container has its own.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sched::{CloneFlags, setns};
use rustix::{
    fs::{AtFlags, OFlags, ResolveFlags, fstat, fstatfs, openat2, statat},
    io::Result as IoResult,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use crate::{
    error::{Result, Step, failure},
    mount::{
        api::{clone_tree, new_filesystem},
        inside::open_path,
    },
    namespaces::join::Joined,
    sys,
};

/// Makes a new /proc of `namespace`, detached.
///
/// # Errors
/// EINVAL if the kernel cannot do that.
fn of(namespace: BorrowedFd<'_>, attributes: MountAttrFlags) -> IoResult<OwnedFd> {
    let filesystem = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", "proc")?;
    fsconfig_set_fd(&filesystem, c"pidns", namespace)?;
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes the /proc that the only process of a new PID namespace leaves for those that will join it.
/// `None` if they can make it themselves.
pub(crate) fn for_pod() -> Result<Option<OwnedFd>> {
    let own = "/proc/self/ns/pid";
    let namespace = File::open(own).step_on("open", own)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    match of(namespace.as_fd(), attributes) {
        Ok(_) => Ok(None),
        Err(rustix::io::Errno::INVAL) => new_filesystem("proc", &[], None, attributes)
            .map(Some)
            .step_on("make the filesystem for", "/proc"),
        Err(errno) => Err(errno).step_on("make the filesystem for", "/proc"),
    }
}

/// A detached /proc of the PID namespace that this process will join.
pub(crate) fn of_joined(joined: &Joined<'_>, attributes: MountAttrFlags) -> Result<OwnedFd> {
    match of(joined.namespace.as_fd(), attributes) {
        Err(rustix::io::Errno::INVAL) => borrow(joined, attributes),
        result => result.step_on("make the /proc of namespace", joined.path),
    }
}

/// A detached copy of a /proc that exists: of the one that the pod's first process has left, or of
/// the one of the container that is joined.
fn borrow(joined: &Joined<'_>, attributes: MountAttrFlags) -> Result<OwnedFd> {
    let proc = match joined.proc {
        Some(pin) => {
            let at = open_path(pin, OFlags::DIRECTORY).step_on("open", pin)?;
            clone_tree(at.as_fd(), false).step_on("clone mount of", pin)?
        }
        None => of_container(joined.path)?,
    };
    // Root of that container may have mounted anything over its /proc. This also finds out if the
    // process id in the path has been given to another process meanwhile.
    if !shows(proc.as_fd(), joined.namespace.as_fd()) {
        return Err(failure(
            "the container whose processes it is to see has no /proc any more that shows them:",
            joined.path,
        ));
    }
    sys::mount_setattr(proc.as_fd(), false, u64::from(attributes.bits()), 0)
        .step_on("set attributes of", "/proc")?;
    Ok(proc)
}

/// A copy of the mount at /proc in the mount namespace whose file is beside `path`.
fn of_container(path: &Path) -> Result<OwnedFd> {
    let own = "/proc/self/ns/mnt";
    let other = path.with_file_name("mnt");
    // Both are opened before the first is entered: afterwards this process sees the container's
    // files only.
    let back = File::open(own).step_on("open namespace", own)?;
    let there = File::open(&other).step_on("open namespace", &other)?;
    setns(there, CloneFlags::CLONE_NEWNS).step_on("join namespace", &other)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // No link of the container's, which could lead to another /proc.
    let links = ResolveFlags::NO_SYMLINKS;
    let proc = openat2(rustix::fs::CWD, "/proc", flags, rustix::fs::Mode::empty(), links)
        .and_then(|at| clone_tree(at.as_fd(), false));
    // Back in any case, before the result is looked at.
    setns(back, CloneFlags::CLONE_NEWNS).step_on("return to namespace", own)?;
    proc.step_on("clone mount of /proc in namespace", other)
}

/// Whether `mount` is a /proc whose process 1 is in `namespace`.
fn shows(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> bool {
    let is_proc = fstatfs(mount).is_ok_and(|stat| stat.f_type == libc::PROC_SUPER_MAGIC);
    let first = statat(mount, "1/ns/pid", AtFlags::empty()).map(|stat| (stat.st_dev, stat.st_ino));
    is_proc && first.is_ok() && first == fstat(namespace).map(|stat| (stat.st_dev, stat.st_ino))
}
