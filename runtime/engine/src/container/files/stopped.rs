//! The files of a container that does not run: its layers, mounted anew, with its binds, its volumes
//! and the images that it mounts.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, bail};
use berth_base::open_in_root::open_in_root;
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
    mounts::{Below, Source},
    overlay::Layers,
};

/// Mounts the files. Blocks.
///
/// # Errors
/// The kernel's.
pub(super) fn open(layers: &Layers, mounts: Vec<Below>) -> anyhow::Result<Root> {
    let layers = layers.clone();
    apart(move || {
        let host_proc = host_proc()?;
        own_mounts()?;
        let root = layers.mount()?;
        if mounts.is_empty() {
            return Ok((root, None));
        }
        // It replaces the root of this namespace in the end; until then any directory will do.
        let place = open_directory(layers.upper())?;
        attach(&root, &place).context("mount the container's files")?;
        for mount in &mounts {
            let path = mount.target.display();
            mount_below(&root, mount).with_context(|| format!("mount {path}"))?;
        }
        // So that nothing of the host stays mounted for as long as somebody reads.
        fchdir(&root).context("enter the container's files")?;
        pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("leave the host's files")?;
        Ok((root, Some(mount_namespace(&host_proc)?)))
    })
}

fn mount_below(root: &OwnedFd, asked: &Below) -> anyhow::Result<()> {
    let mounted = match &asked.source {
        Source::Path(path) => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            match openat(CWD, path, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(()),
                opened => clone(&opened.context("open the source")?, true)?,
            }
        }
        Source::Image(layers, _) => layers.mount()?,
    };
    let kind = FileType::from_raw_mode(fstat(&mounted)?.st_mode);
    let place = place(root, &asked.target, kind)?;
    attach(&mounted, &place).context("attach")?;
    let shown = match &asked.source {
        Source::Image(_, part) if !part.as_os_str().is_empty() => {
            // Over the whole image, as only of what is attached a part can be cloned (Linux 6.15).
            let found = open_in_root(&mounted, part, OFlags::PATH).context("open the part")?;
            let part = clone(&found, false)?;
            attach(&part, &place).context("attach the part")?;
            part
        }
        _ => mounted,
    };
    if asked.readonly {
        let path = format!("/proc/self/fd/{}", shown.as_raw_fd());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>)
            .context("make it read-only")?;
    }
    Ok(())
}

/// A detached copy of what is mounted at `source`: with what is mounted below, if `is_recursive`.
fn clone(source: &OwnedFd, is_recursive: bool) -> anyhow::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, is_recursive);
    open_tree(source, "", flags).context("clone the source")
}

/// The place of a mount in the container, which is made if it is missing, as the start makes it.
fn place(root: &OwnedFd, path: &Path, kind: FileType) -> anyhow::Result<OwnedFd> {
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
    if kind == FileType::Directory {
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
