//! The files of a container that does not run: its layers, mounted anew, with its binds.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, bail};
use berth_base::open_in_root::open_in_root;
use berth_node::container::{Mount, MountSource};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{fchdir, pivot_root},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    Root,
    apart::{apart, host_proc, mount_namespace, own_mounts},
    overlay::Layers,
};

/// Mounts the files. Blocks.
///
/// # Errors
/// The kernel's.
pub(super) fn open(layers: &Layers, binds: &[Mount]) -> anyhow::Result<Root> {
    if binds.is_empty() {
        let layers = layers.clone();
        // A thread of its own, as old kernels need a namespace of its own for this.
        return apart(move || Ok((layers.mount()?, None)));
    }
    let (layers, binds) = (layers.clone(), binds.to_vec());
    apart(move || mount_all(&layers, &binds))
}

fn mount_all(layers: &Layers, binds: &[Mount]) -> anyhow::Result<Root> {
    let host_proc = host_proc()?;
    own_mounts()?;
    let root = layers.mount()?;
    // It replaces the root of this namespace in the end; until then any directory will do.
    let place = open_directory(layers.upper())?;
    attach(&root, &place).context("mount the container's files")?;
    for bind in binds {
        let path = bind.container_path.display();
        bind_below(&root, bind).with_context(|| format!("mount {path}"))?;
    }
    // So that nothing of the host stays mounted for as long as somebody reads.
    fchdir(&root).context("enter the container's files")?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's files")?;
    Ok((root, Some(mount_namespace(&host_proc)?)))
}

fn bind_below(root: &OwnedFd, bind: &Mount) -> anyhow::Result<()> {
    let MountSource::Host(source) = &bind.source else {
        // Nothing of an image can be changed, and the image is there to be read.
        return Ok(());
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let source = match openat(CWD, source, flags, Mode::empty()) {
        // Its directory is made by the first start.
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.context("open the source")?,
    };
    let place = place(root, &bind.container_path, &source)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mounted = open_tree(&source, "", flags).context("clone the source")?;
    attach(&mounted, &place)?;
    if bind.readonly {
        let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>)
            .context("make it read-only")?;
    }
    Ok(())
}

/// The place of a mount in the container, which is made if it is missing, as the start makes it.
fn place(root: &OwnedFd, path: &Path, source: &OwnedFd) -> anyhow::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    match open_in_root(root, relative, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        opened => return opened.context("open its place"),
    }
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        bail!("its place is the root");
    };
    let mut above = Path::new("").to_owned();
    for part in parent {
        let directory = open_in_root(root, &above, OFlags::PATH | OFlags::DIRECTORY)?;
        above.push(part);
        make_directory(&directory, Path::new(part))?;
    }
    let directory = open_in_root(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    if FileType::from_raw_mode(fstat(source)?.st_mode) == FileType::Directory {
        make_directory(&directory, Path::new(name))?;
    } else {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&directory, name, flags, Mode::from_raw_mode(0o644)).context("make its place")?;
    }
    open_in_root(root, relative, OFlags::PATH).context("open its place")
}

fn make_directory(parent: &OwnedFd, name: &Path) -> anyhow::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).context("make its place"),
    }
}

/// Moves a detached mount onto the directory or file that `place` is.
fn attach(mounted: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mounted.as_fd(), "", place.as_fd(), "", flags)
}

fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}
