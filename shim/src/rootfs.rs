//! The root filesystem: overlay, what is mounted over it, pivot_root, hidden and read-only paths.
//!
//! Everything below the root is reached by descriptor: openat2(2) with RESOLVE_IN_ROOT and no magic links, mounts made
//! detached and moved onto a descriptor. So no symbolic link of an image leads out, and none can be swapped in between.

use std::{
    env,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    layout,
    spec::{Container, Rootfs},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{fchdir, pivot_root},
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};

use crate::{
    error::{Result, Step, failure},
    mounts, sys,
};

/// Builds the root of `container` in the current mount namespace and makes it this process' root.
pub(crate) fn enter(dir: &Path, container: &Container) -> Result<()> {
    let prepared = container.mounts.iter().map(mounts::prepare).collect::<Result<Vec<_>>>()?;
    // Mounts made here must not reach the host, later mounts of the host may reach here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).step("make / a slave")?;
    let root = mount_overlay(dir, &container.rootfs)?;
    for (request, prepared) in container.mounts.iter().zip(prepared) {
        mounts::apply(root.as_fd(), request, prepared.as_ref())?;
    }
    for device in &container.devices {
        mounts::make_device(root.as_fd(), device)?;
    }
    if container.rootfs.readonly {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0).step("make the root read-only")?;
    }
    for path in &container.readonly_paths {
        make_readonly(root.as_fd(), path)?;
    }
    for path in &container.masked_paths {
        mask(root.as_fd(), path)?;
    }
    pivot(root.as_fd())
}

/// Mounts the overlay at `rootfs` of the container's directory and returns its root.
fn mount_overlay(dir: &Path, rootfs: &Rootfs) -> Result<OwnedFd> {
    let target = dir.join(layout::ROOTFS);
    match new_overlay(dir, rootfs) {
        Ok(mount) => {
            let at = open_path(CWD, &target, OFlags::DIRECTORY).step_on("open", &target)?;
            mounts::attach(mount.as_fd(), at.as_fd()).step_on("mount overlay on", &target)?;
        }
        // Linux before 6.5 has no `lowerdir+`.
        Err(Errno::INVAL) => mount_overlay_by_option(dir, rootfs, &target)?,
        Err(errno) => return Err(errno).step_on("mount overlay of", dir),
    }
    open_path(CWD, &target, OFlags::DIRECTORY).step_on("open", &target)
}

fn new_overlay(dir: &Path, rootfs: &Rootfs) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in &rootfs.layers {
        fsconfig_set_string(&filesystem, "lowerdir+", rootfs.layers_dir.join(layer))?;
    }
    fsconfig_set_string(&filesystem, "upperdir", dir.join(layout::UPPER))?;
    fsconfig_set_string(&filesystem, "workdir", dir.join(layout::WORK))?;
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// One option string may be a page long at most: relative names save the room that the layers' directory would take.
fn mount_overlay_by_option(dir: &Path, rootfs: &Rootfs, target: &Path) -> Result<()> {
    env::set_current_dir(&rootfs.layers_dir).step_on("chdir to", &rootfs.layers_dir)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        rootfs.layers.join(":"),
        dir.join(layout::UPPER).display(),
        dir.join(layout::WORK).display()
    );
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .step_on("mount overlay on", target)
}

/// Opens something below the container's root, which symbolic links and `..` cannot leave.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn open_path(at: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let clone = mounts::clone_tree(target.as_fd(), true).step_on("clone mount", path)?;
    sys::mount_setattr(clone.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0).step_on("make read-only", path)?;
    mounts::attach(clone.as_fd(), target.as_fd()).step_on("mount over", path)
}

/// Directories get an empty read-only tmpfs, files the container's /dev/null, which must be the real one (CVE-2025-31133).
fn mask(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let stat = rustix::fs::fstat(&target).step_on("stat", path)?;
    let cover = if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        mounts::new_filesystem("tmpfs", &[("size", "0"), ("mode", "755")], MountAttrFlags::MOUNT_ATTR_RDONLY)
            .step_on("mount tmpfs on", path)?
    } else {
        let null = open_in_root(root, Path::new("/dev/null"), OFlags::NOFOLLOW).step_on("open", "/dev/null")?;
        let stat = rustix::fs::fstat(&null).step_on("stat", "/dev/null")?;
        let real = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if !real {
            return Err(failure("not the null device", "/dev/null"));
        }
        mounts::clone_tree(null.as_fd(), false).step_on("clone mount", "/dev/null")?
    };
    mounts::attach(cover.as_fd(), target.as_fd()).step_on("mask", path)
}

fn open_existing(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match open_in_root(root, path, OFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).step_on("open", path),
    }
}

/// pivot_root(2) onto itself: the old root ends up below the new one and is detached, so no directory for it is needed.
fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    fchdir(root).step("chdir to the new root")?;
    pivot_root(".", ".").step("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).step("detach the old root")?;
    env::set_current_dir("/").step_on("chdir to", "/")
}
