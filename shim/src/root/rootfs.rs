//! The root filesystem: an overlay, what is mounted over it, pivot_root(2), and paths that are
//! hidden or read-only.
//!
//! Everything below the root is reached by descriptor (`mount::inside`), and every mount is made
//! detached and then moved onto a descriptor. So no symbolic link of an image leads out of it, and
//! none can be swapped in while the root is assembled.

use std::{
    env,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::spec::{Container, MountKind, UserNamespace};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{fchdir, pivot_root},
};
use rustix::{fs::OFlags, io::Errno, mount::MountAttrFlags};

use crate::{
    descriptor::is_null,
    error::{Result, Step, failure},
    mount::{
        api::{attach, attributes, clone_tree, new_filesystem},
        bind,
        inside::{open_in_root, open_path, open_root},
        proc,
        target::ensure_directory,
    },
    namespaces::{idmap::Idmap, join::Joined},
    root::{devices::Nodes, mount_points, mounts, overlay, volumes},
    sys,
};

/// Everything that comes from files of the host, as detached mounts: only root of the host can make
/// these.
pub(crate) struct Prepared {
    pub root: OwnedFd,
    /// The mounts of the spec in their order; `None` for those that are made later, inside.
    pub mounts: Vec<Option<OwnedFd>>,
    nodes: Nodes,
}

/// Prepares the root of `container`. To be called in a mount namespace of this process' own, and
/// before the user namespace `user` is entered.
///
/// `joined` is the PID namespace that the container's /proc shows, if it is one of others. This
/// process is not in it.
pub(crate) fn prepare(
    dir: &Path,
    container: &Container,
    user: Option<&UserNamespace>,
    joined: Option<&Joined<'_>>,
) -> Result<Prepared> {
    let idmap = user.map(Idmap::open).transpose()?;
    let idmap = idmap.as_ref();
    // Binds come first, while this namespace's mounts are still peers of the host's. A clone of a
    // shared mount is a peer as well then, which is what "bidirectional" propagation means.
    let label = container.label.as_deref();
    let binds = container
        .mounts
        .iter()
        .enumerate()
        .map(|(index, request)| bind::prepare(index, request, label, idmap));
    let mut mounts = binds.collect::<Result<Vec<_>>>()?;
    // Mounts that the host makes later may reach this namespace, and those that are made here from
    // now on must not reach the host.
    follow_host()?;
    // What a mount is put on depends on what is mounted, so after the binds.
    let mount_points = mount_points::layer(dir, container, &mounts);
    let mount_points = mount_points.as_deref();
    // Over the layers in this mount namespace only, so after `follow_host`.
    if let Some(idmap) = idmap {
        overlay::shift_layers(container, mount_points, idmap)?;
    }
    let root = overlay::root(dir, &container.rootfs, mount_points, label, idmap)?;
    // Volumes of the image are filled from the root, so they come after it.
    for (request, prepared) in
        container.mounts.iter().zip(&mut mounts).filter(|(_, prepared)| prepared.is_none())
    {
        *prepared = match overlay::image(dir, container, request)? {
            // Beside the writable layer, whose life they share.
            None => {
                let owner = container.rootfs.writable.as_deref().unwrap_or(dir);
                volumes::prepare(root.as_fd(), owner, request, label, idmap)?
            }
            image => image,
        };
        if let (MountKind::Proc, Some(joined)) = (&request.kind, joined) {
            *prepared = Some(proc::of_joined(joined, attributes(request))?);
        }
    }
    // mknod(2) of devices is forbidden in a user namespace: they are bound from the host's /dev.
    let nodes = if idmap.is_some() { Nodes::of_host(&container.devices)? } else { Nodes::Make };
    Ok(Prepared { root, mounts, nodes })
}

/// Makes all mounts of this namespace slaves of the host's (mount_namespaces(7)).
fn follow_host() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .step("make / a slave")
}

/// Leaves the host's files for an empty directory with this SELinux label. To be called in a mount
/// namespace of this process' own.
pub(crate) fn enter_empty(label: Option<&str>) -> Result<()> {
    follow_host()?;
    let root = empty(label).step("make an empty root")?;
    attach(root.as_fd(), open_root()?.as_fd()).step_on("mount on", "/")?;
    pivot(root.as_fd())
}

/// A detached mount of an empty directory in which nothing can be made.
fn empty(label: Option<&str>) -> rustix::io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    new_filesystem("tmpfs", &[("size", "0"), ("mode", "755")], label, attributes)
}

/// Mounts the root of `container` on `at`, and everything else below it. Needs the mount namespace
/// in which the container will be.
pub(crate) fn assemble(prepared: &Prepared, container: &Container, at: &Path) -> Result<()> {
    let Prepared { root, mounts, nodes } = prepared;
    let directory = open_path(at, OFlags::DIRECTORY).step_on("open", at)?;
    attach(root.as_fd(), directory.as_fd()).step_on("mount overlay on", at)?;
    for (request, mount) in container.mounts.iter().zip(mounts) {
        mounts::apply(root.as_fd(), request, mount.as_ref(), container.label.as_deref(), nodes)?;
    }
    // After all mounts, one of which is /dev.
    nodes.provide(root.as_fd(), &container.devices)
}

/// Takes from the finished root what the container may not have, and makes it the root of this
/// process.
pub(crate) fn enter(prepared: &Prepared, container: &Container) -> Result<()> {
    let root = &prepared.root;
    // containerd and Docker make a working directory that the image lacks. Failures are left to
    // chdir(2), which names the directory: a file may be in its place.
    let _ = ensure_directory(root.as_fd(), &container.process.cwd);
    // Only now, as mount targets and that directory have been made in it until here.
    if container.rootfs.readonly {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0)
            .step("make the root read-only")?;
    }
    for path in &container.readonly_paths {
        make_readonly(root.as_fd(), path)?;
    }
    // After the read-only paths, whose clones would show what is masked below them.
    for path in &container.masked_paths {
        mask(root.as_fd(), path, container.label.as_deref())?;
    }
    pivot(root.as_fd())
}

/// Mounts a read-only copy of what is at `path` over it, with everything that is mounted below.
fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let clone = clone_tree(target.as_fd(), true).step_on("clone mount", path)?;
    sys::mount_setattr(clone.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0)
        .step_on("make read-only", path)?;
    attach(clone.as_fd(), target.as_fd()).step_on("mount over", path)
}

/// Hides what is at `path`: a directory behind an empty read-only tmpfs, a file behind the
/// container's /dev/null. That must be the real one: an image that put a link there would have
/// another file made accessible instead (CVE-2025-31133).
fn mask(root: BorrowedFd<'_>, path: &Path, label: Option<&str>) -> Result<()> {
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let stat = rustix::fs::fstat(&target).step_on("stat", path)?;
    let (cover, step) = if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        (empty(label).step_on("make an empty directory for", path)?, "mask")
    } else {
        let null = open_in_root(root, Path::new("/dev/null"), OFlags::NOFOLLOW)
            .step_on("open", "/dev/null")?;
        if !is_null(null.as_fd()).step_on("stat", "/dev/null")? {
            return Err(failure("not the null device:", "/dev/null"));
        }
        (clone_tree(null.as_fd(), false).step_on("clone mount", "/dev/null")?, "put /dev/null over")
    };
    attach(cover.as_fd(), target.as_fd()).step_on(step, path)
}

/// Opens `path`, or nothing if the container has nothing there: not every kernel has all of /proc.
fn open_existing(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match open_in_root(root, path, OFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).step_on("open", path),
    }
}

/// Makes `root` the root of this process, and detaches the old one. pivot_root(2) with one
/// directory for both puts the old root over the new one, so none has to be made for it.
fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    fchdir(root).step("chdir to the new root")?;
    pivot_root(".", ".").step("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).step("detach the old root")?;
    // Until then the working directory was the old root, which is no longer attached.
    env::set_current_dir("/").step_on("chdir to", "/")
}
