//! Overlays of image layers, as detached mounts: the container's own root, and the files of other
//! images as volumes.

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
    fs::{CWD, Gid, Mode, OFlags, StatVfsMountFlags, Uid, fstatvfs, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::{
    error::{Result, Step, failure},
    mount::{api, inside::open_in_root},
    namespaces::idmap::Idmap,
    sys,
};

/// Mounts every layer that `container` needs over itself, with its owners seen through the pod's
/// user namespace. overlayfs takes layers by path, so it is not enough to have such mounts
/// detached. This changes the mount namespace of this process only.
pub(crate) fn shift_layers(
    container: &Container,
    mount_points: Option<&Path>,
    idmap: &Idmap,
) -> Result<()> {
    let of_images = container.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Image { layers, .. } => Some(layers),
        _ => None,
    });
    // Images may share layers, and each is to be covered once.
    let layers: BTreeSet<&String> = of_images.chain([&container.rootfs.layers]).flatten().collect();
    let paths = layers.into_iter().map(|layer| container.rootfs.layers_dir.join(layer));
    for path in paths.chain(mount_points.map(Path::to_owned)) {
        let at = open_directory(&path)?;
        let shifted = api::clone_tree(at.as_fd(), false).step_on("clone mount of", &path)?;
        sys::idmap(shifted.as_fd(), false, idmap.namespace.as_fd())
            .step_on("map the owners of", &path)?;
        api::attach(shifted.as_fd(), at.as_fd()).step_on("mount on", &path)?;
    }
    Ok(())
}

/// The container's root: its layers, below the writable `upper`, and above `mount_points`.
pub(crate) fn root(
    dir: &Path,
    rootfs: &Rootfs,
    mount_points: Option<&Path>,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<OwnedFd> {
    let (upper, work) = writable(dir, rootfs);
    // overlayfs shows the root directory with the owner of `upper`.
    if let Some(Idmap { uid, gid, .. }) = idmap {
        rustix::fs::chown(&upper, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))
            .step_on("chown", &upper)?;
    }
    let of_image = rootfs.layers.iter().map(|layer| rootfs.layers_dir.join(layer));
    let layers: Vec<PathBuf> = of_image.chain(mount_points.map(Path::to_owned)).collect();
    let root = match new_overlay(&layers, Some((&upper, &work)), label) {
        Err(Errno::INVAL) => root_by_option(dir, rootfs, label),
        result => result.step_on("mount overlay of", dir),
    }?;
    check_writable(&root, &work)?;
    Ok(root)
}

/// The directory for what the container writes, and the one that overlayfs wants beside it.
fn writable(dir: &Path, rootfs: &Rootfs) -> (PathBuf, PathBuf) {
    let directory = rootfs.writable.as_deref().unwrap_or(dir);
    (directory.join(layout::UPPER), directory.join(layout::WORK))
}

/// Fails if the overlay is read-only. overlayfs mounts it so, and tells only the kernel's log, if
/// it cannot make its own directory in `work` (`ovl_make_workdir`). On a full disk the container
/// would fail later otherwise, and nobody could tell why.
fn check_writable(root: &OwnedFd, work: &Path) -> Result<()> {
    if !fstatvfs(root).step("statfs of the overlay")?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    // Makes a directory itself, for the error number that the kernel has kept to itself.
    let probe = work.join("probe");
    fs::create_dir(&probe)
        .and_then(|()| fs::remove_dir(&probe))
        .step_on("make a directory for the overlay in", work)?;
    Err(failure("the kernel mounts the overlay read-only:", work))
}

/// Makes an overlay with fsopen(2).
///
/// # Errors
/// EINVAL before Linux 6.5, which has no `lowerdir+`.
fn new_overlay(
    layers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    label: Option<&str>,
) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", "overlay")?;
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

/// The same with mount(2), whose option string is one page at most. Names relative to the layers'
/// directory leave room for some sixty layers. None is spent on the places of mounts, which are made
/// in `upper`.
fn root_by_option(dir: &Path, rootfs: &Rootfs, label: Option<&str>) -> Result<OwnedFd> {
    let target = dir.join(layout::ROOTFS);
    fs::create_dir_all(&target).step_on("make", &target)?;
    // overlayfs resolves relative names by the working directory.
    env::set_current_dir(&rootfs.layers_dir).step_on("chdir to", &rootfs.layers_dir)?;
    let (upper, work) = writable(dir, rootfs);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{}",
        rootfs.layers.join(":"),
        upper.display(),
        work.display(),
        label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default()
    );
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .step_on("mount overlay on", &target)?;
    let root = open_directory(&target)?;
    api::clone_tree(root.as_fd(), false).step_on("clone mount of", &target)
}

/// The files of another image, or the part of them that `request` names, read-only. `None` if
/// `request` is of another kind.
pub(crate) fn image(dir: &Path, container: &Container, request: &Mount) -> Result<Option<OwnedFd>> {
    let MountKind::Image { layers, sub_path } = &request.kind else { return Ok(None) };
    let mut layers: Vec<PathBuf> =
        layers.iter().map(|layer| container.rootfs.layers_dir.join(layer)).collect();
    let label = container.label.as_deref();
    // overlayfs needs two lower layers if there is no upper one. A single layer can be bound as it
    // is, unless its files need a label: then an empty directory is the second layer.
    let whole = match layers.as_slice() {
        [only] if label.is_none() => api::clone_tree(open_directory(only)?.as_fd(), false),
        all => {
            let alone = all.len() == 1;
            layers.extend(alone.then(|| dir.join(layout::SCRATCH)));
            new_overlay(&layers, None, label)
        }
    }
    .step_on("mount the image for", &request.target)?;
    let mount = if sub_path.as_os_str().is_empty() { whole } else { part(dir, &whole, sub_path)? };
    let attributes = api::attributes(request) | MountAttrFlags::MOUNT_ATTR_RDONLY;
    sys::mount_setattr(mount.as_fd(), false, u64::from(attributes.bits()), 0)
        .step_on("set attributes of", &request.target)?;
    Ok(Some(mount))
}

/// A mount of `sub_path` alone. Before Linux 6.15 only a mount that is attached can be cloned, so
/// `whole` is attached to the scratch directory meanwhile.
fn part(dir: &Path, whole: &OwnedFd, sub_path: &Path) -> Result<OwnedFd> {
    let scratch = dir.join(layout::SCRATCH);
    api::attach(whole.as_fd(), open_directory(&scratch)?.as_fd()).step_on("mount on", &scratch)?;
    let found = open_in_root(whole.as_fd(), sub_path, OFlags::empty())
        .step_on("ImageVolumeMountFailed: open", sub_path)?;
    let mount = api::clone_tree(found.as_fd(), false).step_on("clone mount of", sub_path)?;
    // Other images may need the scratch directory after this one.
    umount2(&scratch, MntFlags::MNT_DETACH).step_on("unmount", &scratch)?;
    Ok(mount)
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step_on("open", path)
}
