//! The root filesystem: overlay, what is mounted over it, pivot_root, hidden and read-only paths.
//!
//! Everything below the root is reached by descriptor: openat2(2) with RESOLVE_IN_ROOT and no magic links, mounts made
//! detached and moved onto a descriptor. So no symbolic link of an image leads out, and none can be swapped in between.

use std::{
    env,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::spec::{Container, UserNamespace};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{fchdir, pivot_root},
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::MountAttrFlags,
};

use crate::{
    devices::Nodes,
    error::{Result, Step, failure},
    mounts,
    namespaces::Idmap,
    overlay, sys, volumes,
};

/// What only root of the host can make: everything that comes from its files, as detached mounts.
pub(crate) struct Prepared {
    pub root: OwnedFd,
    /// One for each mount that needs it, in the order of the request.
    pub mounts: Vec<Option<OwnedFd>>,
    nodes: Nodes,
}

/// In a mount namespace of this process' own; with a user namespace, before it is entered.
pub(crate) fn prepare(dir: &Path, container: &Container, user: Option<&UserNamespace>) -> Result<Prepared> {
    let idmap = user.map(Idmap::open).transpose()?;
    let idmap = idmap.as_ref();
    // While this namespace's mounts are still peers of the host's: a shared one stays a peer then, which is what
    // "bidirectional" means.
    let label = container.label.as_deref();
    let binds =
        container.mounts.iter().enumerate().map(|(index, request)| mounts::prepare(index, request, label, idmap));
    let mut mounts = binds.collect::<Result<Vec<_>>>()?;
    // Mounts made here must not reach the host, later mounts of the host may reach here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).step("make / a slave")?;
    if let Some(idmap) = idmap {
        overlay::shift_layers(container, idmap)?;
    }
    let root = overlay::root(dir, &container.rootfs, label, idmap)?;
    for (request, prepared) in container.mounts.iter().zip(&mut mounts).filter(|(_, prepared)| prepared.is_none()) {
        *prepared = match overlay::image(dir, container, request)? {
            None => volumes::prepare(root.as_fd(), dir, request, label, idmap)?,
            image => image,
        };
    }
    let nodes = if idmap.is_some() { Nodes::of_host(&container.devices)? } else { Nodes::Make };
    Ok(Prepared { root, mounts, nodes })
}

/// Builds the root of `container` at `at` in the current mount namespace.
pub(crate) fn assemble(prepared: &Prepared, container: &Container, at: &Path) -> Result<()> {
    let Prepared { root, mounts, nodes } = prepared;
    let directory = open_path(at, OFlags::DIRECTORY).step_on("open", at)?;
    mounts::attach(root.as_fd(), directory.as_fd()).step_on("mount overlay on", at)?;
    for (request, mount) in container.mounts.iter().zip(mounts) {
        mounts::apply(root.as_fd(), request, mount.as_ref(), container.label.as_deref(), nodes)?;
    }
    nodes.provide(root.as_fd(), &container.devices)
}

/// Takes from the finished root what the container may not have, and makes it this process' root.
pub(crate) fn enter(prepared: &Prepared, container: &Container) -> Result<()> {
    let root = &prepared.root;
    if container.rootfs.readonly {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0).step("make the root read-only")?;
    }
    for path in &container.readonly_paths {
        make_readonly(root.as_fd(), path)?;
    }
    for path in &container.masked_paths {
        mask(root.as_fd(), path, container.label.as_deref())?;
    }
    pivot(root.as_fd())
}

/// Opens something below the container's root, which symbolic links and `..` cannot leave.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

pub(crate) fn open_path(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let clone = mounts::clone_tree(target.as_fd(), true).step_on("clone mount", path)?;
    sys::mount_setattr(clone.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0).step_on("make read-only", path)?;
    mounts::attach(clone.as_fd(), target.as_fd()).step_on("mount over", path)
}

/// Directories get an empty read-only tmpfs, files the container's /dev/null, which must be the real one (CVE-2025-31133).
fn mask(root: BorrowedFd<'_>, path: &Path, label: Option<&str>) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let stat = rustix::fs::fstat(&target).step_on("stat", path)?;
    let cover = if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        mounts::new_filesystem("tmpfs", &[("size", "0"), ("mode", "755")], label, MountAttrFlags::MOUNT_ATTR_RDONLY)
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
