//! The lowest layer of every container: the places that dockerd makes in a root before anything is
//! mounted on them, and the file by which programs find out that Docker made their container.
//!
//! It is below the layers of the image, so that whatever an image has itself comes first. What is in
//! it is no change of a container, and shows in its files whether it runs or not.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::Context;

const DIRECTORIES: [&str; 6] = ["dev", "dev/pts", "dev/shm", "etc", "proc", "sys"];
const FILES: [&str; 5] =
    [".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"];
/// dockerd's, of directories and files.
const MODE: u32 = 0o755;

/// Its directory, below the daemon's root.
pub(crate) fn path(root: &Path) -> PathBuf {
    root.join("engine/base-layer")
}

/// Makes what is missing of it.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn make(root: &Path) -> anyhow::Result<()> {
    let layer = path(root);
    make_in(&layer).with_context(|| format!("make {}", layer.display()))
}

fn make_in(layer: &Path) -> io::Result<()> {
    fs::create_dir_all(layer)?;
    for directory in DIRECTORIES.map(|name| layer.join(name)) {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(MODE))?;
    }
    for file in FILES.map(|name| layer.join(name)) {
        File::options().create(true).append(true).open(&file)?;
        fs::set_permissions(&file, Permissions::from_mode(MODE))?;
    }
    // For programs that look for the mounts where they were kept before Linux told them.
    match symlink("/proc/mounts", layer.join("etc/mtab")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
