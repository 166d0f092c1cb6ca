//! The mount API of fsopen(2), open_tree(2) and move_mount(2). A mount that it makes is detached: a
//! descriptor that nobody can see or change before it is attached to its place.

use std::os::fd::{BorrowedFd, OwnedFd};

use berth_shim::spec::Mount;
use rustix::{
    io::Result as IoResult,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

/// The MOUNT_ATTR_* that a mount asks for.
pub(crate) fn attributes(request: &Mount) -> MountAttrFlags {
    [
        (request.readonly, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (request.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (request.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (request.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(MountAttrFlags::empty(), |all, (_, flag)| all | flag)
}

/// A detached mount of a new file system of this kind, which /proc/mounts shows as its source, too, as
/// with runc: `df tmpfs` finds it. `label` is the SELinux label of all of its files.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    label: Option<&str>,
    attributes: MountAttrFlags,
) -> IoResult<OwnedFd> {
    let filesystem = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", kind)?;
    for (key, value) in options.iter().copied().chain(label.map(|label| ("context", label))) {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of the mount at `source`, as a bind mount is one: with all that is mounted below
/// it, if `recursive`.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> IoResult<OwnedFd> {
    let recursive = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(source, "", flags | recursive)
}

/// Moves a detached mount onto the directory or file that `target` is.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> IoResult<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}
