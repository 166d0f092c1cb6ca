//! Volumes that an image declares: each is a directory of the container's own, filled with what the
//! image has there.
//!
//! They are copied by descriptor (`copy_tree`).

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    copy_tree::copy_tree,
    layout,
    record::Stage,
    spec::{Mount, MountKind},
};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, Uid, fchown, openat},
    io::Errno,
};

use crate::{
    error::{Result, Step, invalid},
    mount::{api::clone_tree, inside::open_in_root, relabel::relabel},
    namespaces::idmap::Idmap,
    process::progress::stage,
};

/// The volume of `request` as a detached mount; `None` if it is of another kind. `root` is the
/// container's root without its mounts. A volume that an earlier run has left is taken as it is.
pub(crate) fn prepare(
    root: BorrowedFd<'_>,
    dir: &Path,
    request: &Mount,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<Option<OwnedFd>> {
    let MountKind::Volume { name } = &request.kind else { return Ok(None) };
    let path = dir.join(layout::VOLUMES).join(name);
    let volume = match open_directory(&path) {
        Err(Errno::NOENT) => make(root, &path, request, idmap)?,
        found => found.step_on("open", &path)?,
    };
    label.map_or(Ok(()), |label| relabel(volume.as_fd(), &path, label))?;
    clone_tree(volume.as_fd(), false).step_on("clone mount of", &path).map(Some)
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a volume. It has its name when it is filled: one that was begun is begun anew.
fn make(
    root: BorrowedFd<'_>,
    path: &Path,
    request: &Mount,
    idmap: Option<&Idmap>,
) -> Result<OwnedFd> {
    let incomplete = path.with_extension("incomplete");
    match fs::remove_dir_all(&incomplete) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).step_on("remove", &incomplete);
        }
        _ => fs::create_dir_all(&incomplete).step_on("make", &incomplete)?,
    }
    let volume = open_directory(&incomplete).step_on("open", &incomplete)?;
    match open_in_root(root, &request.target, OFlags::DIRECTORY) {
        Ok(found) => {
            let source = open_again(&found).step_on("open", &request.target)?;
            // A large image takes longer than the daemon waits for a launch without progress.
            copy_tree(&source, &volume, &mut |files| stage(Stage::Copy(files)))
                .step_on("copy the image's files for volume", &request.target)?;
        }
        Err(Errno::NOENT) => {
            // The image has only declared the volume. It is empty and belongs to root, which in a
            // user namespace is another id.
            let (uid, gid) = idmap.map_or((0, 0), |idmap| (idmap.uid, idmap.gid));
            fchown(&volume, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .step_on("chown", &incomplete)?;
        }
        Err(Errno::NOTDIR) => {
            return Err(invalid("the image's volume is not a directory:", &request.target));
        }
        Err(errno) => return Err(errno).step_on("open", &request.target),
    }
    fs::rename(&incomplete, path).step_on("rename", &incomplete)?;
    Ok(volume)
}

/// Opens a directory for reading that was opened as a place only (O_PATH).
fn open_again(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    openat(place, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
