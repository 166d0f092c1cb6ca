//! The files and directories that mounts are put on, as a layer of their own below the image.
//!
//! What an image lacks of them has to be made, and through the overlay each costs as much as several
//! files of the disk below: of a start with twenty mounts it was a third. Containers with the same
//! mounts share one such layer. It is the lowest, so that whatever the image has comes first, links
//! and owners too, and `upper` holds only what the container itself has written.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::{
    layout,
    spec::{Container, Mount, MountKind},
};
use rustix::fs::{FileType, OFlags, fstat};

use crate::{
    error::{Result, Step},
    mount::{
        inside::{open_in_root, open_path},
        target::{ensure_directory, ensure_file},
    },
};

/// A mount's target, and whether a directory or a file has to be there.
type Target<'a> = (&'a Path, bool);

/// The layer for `container`, whose prepared binds are `mounts`: that of all containers with the same
/// mounts, or one of its own where that one does not fit. `None` if neither can be had. The mounts
/// then have their places made through the overlay, and if that fails too it says why.
pub(crate) fn layer(
    dir: &Path,
    container: &Container,
    mounts: &[Option<OwnedFd>],
) -> Option<PathBuf> {
    let shared = container.rootfs.mount_points.as_deref()?;
    let targets = targets(container, mounts)?;
    if fits(shared, &targets) {
        return Some(shared.to_owned());
    }
    // Made in the container's own directory, so that nothing is left whatever happens meanwhile.
    let own = dir.join(layout::MOUNT_POINTS);
    make(&own, &targets).ok()?;
    // Fails if another container has come first, or has a file where this one has a directory.
    match fs::rename(&own, shared) {
        Ok(()) => Some(shared.to_owned()),
        Err(_) => Some(own),
    }
}

/// What has to be there. Mounts below other mounts have their places made in those, and the places
/// of image volumes are mostly in the image.
fn targets<'a>(container: &'a Container, mounts: &[Option<OwnedFd>]) -> Option<Vec<Target<'a>>> {
    let is_below_another = |target: &Path| {
        let mut others = container.mounts.iter().map(|mount| mount.target.as_path());
        others.any(|other| other != target && target.starts_with(other))
    };
    let target = |(mount, prepared): (&'a Mount, &Option<OwnedFd>)| {
        let is_directory = match prepared {
            Some(bind) => FileType::from_raw_mode(fstat(bind).ok()?.st_mode).is_dir(),
            None => true,
        };
        Some((mount.target.as_path(), is_directory))
    };
    let own = container.mounts.iter().zip(mounts).filter(|(mount, _)| {
        !matches!(mount.kind, MountKind::Image { .. } | MountKind::Volume { .. })
            && !is_below_another(&mount.target)
    });
    own.map(target).collect()
}

/// Whether there is a layer, and nothing in it contradicts the targets. What it lacks, because the
/// machine lost power while it was written, is made through the overlay.
fn fits(layer: &Path, targets: &[Target<'_>]) -> bool {
    let Ok(root) = open_path(layer, OFlags::DIRECTORY | OFlags::NOFOLLOW) else { return false };
    let contradicts = |(target, is_directory): &Target<'_>| {
        let found = open_in_root(root.as_fd(), target, OFlags::empty()).and_then(fstat);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir() != *is_directory)
    };
    !targets.iter().any(contradicts)
}

fn make(layer: &Path, targets: &[Target<'_>]) -> Result<()> {
    fs::create_dir(layer).step_on("make", layer)?;
    let root = open_path(layer, OFlags::DIRECTORY).step_on("open", layer)?;
    for (target, is_directory) in targets {
        match is_directory {
            true => ensure_directory(root.as_fd(), target)?,
            false => ensure_file(root.as_fd(), target)?,
        };
    }
    Ok(())
}
