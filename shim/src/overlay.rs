//! Overlays of image layers: the container's own root, and the files of other images as volumes. All of them detached.

use std::{
    collections::BTreeSet,
    env, fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::{
    layout,
    spec::{Container, Mount, MountKind, Rootfs},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, Uid, openat},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};

use crate::{
    error::{Result, Step},
    mounts,
    namespaces::Idmap,
    rootfs::open_in_root,
    sys,
};

/// Covers every layer that `container` needs with itself, seen through its user namespace: overlayfs takes layers by path. In the
/// mount namespace of this process only.
pub(crate) fn shift_layers(container: &Container, idmap: &Idmap) -> Result<()> {
    let of_images = container.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Image { layers, .. } => Some(layers),
        _ => None,
    });
    let layers: BTreeSet<&String> = of_images.chain([&container.rootfs.layers]).flatten().collect();
    for layer in layers {
        let path = container.rootfs.layers_dir.join(layer);
        let at = open_directory(&path)?;
        let shifted = mounts::clone_tree(at.as_fd(), false).step_on("clone mount of", &path)?;
        sys::idmap(shifted.as_fd(), false, idmap.namespace.as_fd()).step_on("map the owners of", &path)?;
        mounts::attach(shifted.as_fd(), at.as_fd()).step_on("mount on", &path)?;
    }
    Ok(())
}

/// The container's root: its layers below `upper` of its directory.
pub(crate) fn root(dir: &Path, rootfs: &Rootfs, label: Option<&str>, idmap: Option<&Idmap>) -> Result<OwnedFd> {
    let (upper, work) = (dir.join(layout::UPPER), dir.join(layout::WORK));
    if let Some(Idmap { uid, gid, .. }) = idmap {
        rustix::fs::chown(&upper, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid))).step_on("chown", &upper)?;
    }
    let layers: Vec<PathBuf> = rootfs.layers.iter().map(|layer| rootfs.layers_dir.join(layer)).collect();
    match new_overlay(&layers, Some((&upper, &work)), label) {
        // Linux before 6.5 has no `lowerdir+`.
        Err(Errno::INVAL) => root_by_option(dir, rootfs, label),
        result => result.step_on("mount overlay of", dir),
    }
}

fn new_overlay(
    layers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    label: Option<&str>,
) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(&filesystem, "lowerdir+", layer)?;
    }
    if let Some((upper, work)) = writable {
        fsconfig_set_string(&filesystem, "upperdir", upper)?;
        fsconfig_set_string(&filesystem, "workdir", work)?;
    }
    if let Some(label) = label {
        fsconfig_set_string(&filesystem, "context", label)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// One option string may be a page long at most: relative names save the room that the layers' directory would take.
fn root_by_option(dir: &Path, rootfs: &Rootfs, label: Option<&str>) -> Result<OwnedFd> {
    let target = dir.join(layout::ROOTFS);
    fs::create_dir_all(&target).step_on("make", &target)?;
    env::set_current_dir(&rootfs.layers_dir).step_on("chdir to", &rootfs.layers_dir)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{}",
        rootfs.layers.join(":"),
        dir.join(layout::UPPER).display(),
        dir.join(layout::WORK).display(),
        label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default()
    );
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .step_on("mount overlay on", &target)?;
    let root = open_directory(&target)?;
    mounts::clone_tree(root.as_fd(), false).step_on("clone mount of", &target)
}

/// The files of an image, or the part of them that `request` names, read-only.
pub(crate) fn image(dir: &Path, container: &Container, request: &Mount) -> Result<Option<OwnedFd>> {
    let MountKind::Image { layers, sub_path } = &request.kind else { return Ok(None) };
    let mut layers: Vec<PathBuf> = layers.iter().map(|layer| container.rootfs.layers_dir.join(layer)).collect();
    let label = container.label.as_deref();
    // overlayfs wants two. One alone is what it shows, but for its label: then an empty directory is the other.
    let whole = match layers.as_slice() {
        [only] if label.is_none() => mounts::clone_tree(open_directory(only)?.as_fd(), false),
        all => {
            let alone = all.len() == 1;
            layers.extend(alone.then(|| dir.join(layout::EXEC)));
            new_overlay(&layers, None, label)
        }
    }
    .step_on("mount the image for", &request.target)?;
    let mount = if sub_path.as_os_str().is_empty() { whole } else { part(dir, &whole, sub_path)? };
    let attributes = mounts::attributes(request) | MountAttrFlags::MOUNT_ATTR_RDONLY;
    sys::mount_setattr(mount.as_fd(), false, u64::from(attributes.bits()), 0)
        .step_on("set attributes of", &request.target)?;
    Ok(Some(mount))
}

/// Only what is attached can be cloned (before Linux 6.15): any directory will do for the moment.
fn part(dir: &Path, whole: &OwnedFd, sub_path: &Path) -> Result<OwnedFd> {
    let scratch = dir.join(layout::EXEC);
    mounts::attach(whole.as_fd(), open_directory(&scratch)?.as_fd()).step_on("mount on", &scratch)?;
    let found =
        open_in_root(whole.as_fd(), sub_path, OFlags::empty()).step_on("ImageVolumeMountFailed: open", sub_path)?;
    let mount = mounts::clone_tree(found.as_fd(), false).step_on("clone mount of", sub_path)?;
    umount2(&scratch, MntFlags::MNT_DETACH).step_on("unmount", &scratch)?;
    Ok(mount)
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step_on("open", path)
}
