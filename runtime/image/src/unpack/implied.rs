//! Implied directories: those that a layer's tar has no entries for, because the layers below
//! contain them already.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::open_in_root::open_in_root;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, futimens, openat,
    statat,
};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Sets the owner, mode and time of the directories `implied` below `own` to those that they have
/// in the topmost of the layers `below` that contains them. Without this a container would see
/// directories of root with mode 0755, because overlayfs shows the attributes of the uppermost
/// directory. Blocks.
///
/// # Errors
/// Errors of the filesystem.
pub(crate) fn inherit_attributes(
    own: &Path,
    implied: &[OsString],
    below: &[PathBuf],
) -> anyhow::Result<()> {
    let own = open_root(own)?;
    let below = below.iter().map(|root| open_root(root)).collect::<anyhow::Result<Vec<_>>>()?;
    for path in implied.iter().map(Path::new) {
        let find = |root| open_in_root(root, path, DIRECTORY).ok();
        // If no layer below has it, there is nothing to inherit.
        let Some(source) = below.iter().find_map(find) else { continue };
        let target = open_in_root(&own, path, DIRECTORY)
            .with_context(|| format!("open {}", path.display()))?;
        copy_attributes(&source, &target)?;
    }
    Ok(())
}

fn open_root(root: &Path) -> anyhow::Result<OwnedFd> {
    openat(CWD, root, DIRECTORY, Mode::empty()).with_context(|| format!("open {}", root.display()))
}

fn copy_attributes(source: &OwnedFd, target: &OwnedFd) -> anyhow::Result<()> {
    let found = statat(source, "", AtFlags::EMPTY_PATH).context("stat")?;
    let uid = Uid::from_raw(found.st_uid);
    let gid = Gid::from_raw(found.st_gid);
    fchown(target, Some(uid), Some(gid)).context("chown")?;
    fchmod(target, Mode::from_raw_mode(found.st_mode)).context("chmod")?;
    // In whole seconds, like the times in a tar.
    let time = Timespec { tv_sec: found.st_mtime as i64, tv_nsec: 0 };
    futimens(target, &Timestamps { last_access: time, last_modification: time })
        .context("set times")
}
