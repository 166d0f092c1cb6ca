//! The mounts of the container: attaches what was prepared on the host's side, and makes the file
//! systems of the kernel's that belong to the container's namespaces.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::{Mount, MountKind};
use rustix::{
    fs::{Mode, OFlags, mkdirat},
    io::{Errno, Result as IoResult},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::{
    error::{Result, Step, failure},
    mount::{
        api::{attach, attributes, clone_tree, new_filesystem},
        bind::attach_below,
        inside::{open_in_root, open_path},
        relabel,
        target::{ensure_directory, ensure_plain_directory},
    },
    root::devices::{self, Nodes},
    sys,
};

/// Mounts `request` below `root`; `prepared` is the mount that was made for it before, if it needs
/// one. `label` is the SELinux label of the container's files.
pub(crate) fn apply(
    root: BorrowedFd<'_>,
    request: &Mount,
    prepared: Option<&OwnedFd>,
    label: Option<&str>,
    nodes: &Nodes,
) -> Result<()> {
    if let Some(mount) = prepared.filter(|_| request.kind != MountKind::Proc) {
        return attach_below(root, request, mount);
    }
    let attributes = attributes(request);
    let target = &request.target;
    let mount = match &request.kind {
        MountKind::Bind { .. }
        | MountKind::Image { .. }
        | MountKind::Volume { .. }
        | MountKind::HostSysfs => {
            return Err(failure("not prepared:", target));
        }
        MountKind::Proc => match prepared {
            Some(mount) => {
                mount.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
            None => new_filesystem("proc", &[], None, attributes),
        },
        MountKind::Sysfs => new_filesystem("sysfs", &[], None, attributes),
        // The kernel made this file system with the IPC namespace, so it takes no option any more.
        // It is labelled below.
        MountKind::Mqueue => new_filesystem("mqueue", &[], None, attributes),
        MountKind::Cgroup { v1, .. } if v1.is_empty() => {
            new_filesystem("cgroup2", &[], None, attributes)
        }
        // Not read-only yet: directories or nodes are made in it below.
        MountKind::Cgroup { .. } | MountKind::Dev => new_filesystem(
            "tmpfs",
            &[("mode", "755"), ("size", "65536")],
            label,
            attributes - MountAttrFlags::MOUNT_ATTR_RDONLY,
        ),
        MountKind::Tmpfs { size, mode, options } => {
            let mode = if *mode == 0 { covered_mode(root, target) } else { *mode };
            let mode = format!("{mode:o}");
            let size = (*size > 0).then(|| size.to_string());
            let more = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let options: Vec<_> = [("mode", mode.as_str())]
                .into_iter()
                .chain(size.as_deref().map(|size| ("size", size)))
                .chain(more)
                .collect();
            new_filesystem("tmpfs", &options, label, attributes)
        }
    }
    .step_on("make the filesystem for", target)?;
    let at = match &request.kind {
        // Images have links where a tmpfs is asked for, such as /var/run to /run.
        MountKind::Tmpfs { .. } => ensure_directory(root, target)?,
        _ => ensure_plain_directory(root, target)?,
    };
    attach(mount.as_fd(), at.as_fd()).step_on("mount on", target)?;
    match &request.kind {
        MountKind::Dev => devices::populate(mount.as_fd(), nodes, label),
        MountKind::Cgroup { v1, own } => mount_hierarchies(mount.as_fd(), v1, own, attributes),
        // In a user namespace the file system belongs to that, and this process may not label it.
        MountKind::Mqueue => label
            .filter(|_| matches!(nodes, Nodes::Make))
            .map_or(Ok(()), |label| relabel::label(mount.as_fd(), label).step_on("label", target)),
        _ => Ok(()),
    }
}

/// The mode of the directory that a mount will cover, or what a tmpfs has if there is none.
fn covered_mode(root: BorrowedFd<'_>, target: &Path) -> u32 {
    /// Everybody's, as /tmp is.
    const DEFAULT: u32 = 0o1777;
    let directory = open_in_root(root, target, OFlags::DIRECTORY);
    let stat = directory.and_then(rustix::fs::fstat);
    stat.map_or(DEFAULT, |stat| stat.st_mode & 0o7777)
}

/// Fills /sys/fs/cgroup on a host with cgroup v1: one directory for each hierarchy. Its root is the
/// container's own cgroup because of the cgroup namespace, or else one of `own`, which are still
/// there under the host's paths.
fn mount_hierarchies(
    directory: BorrowedFd<'_>,
    names: &[String],
    own: &[PathBuf],
    attributes: MountAttrFlags,
) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        let label = name.strip_prefix("name=").unwrap_or(name);
        mkdirat(directory, label, Mode::from_raw_mode(0o755))
            .step_on("make /sys/fs/cgroup/", label)?;
        let at = open_in_root(directory, Path::new(label), OFlags::DIRECTORY)
            .step_on("open /sys/fs/cgroup/", label)?;
        let hierarchy = match own.get(index) {
            Some(own) => part_of_hierarchy(own, attributes)?,
            None => new_hierarchy(name, attributes).step_on("mount /sys/fs/cgroup/", label)?,
        };
        attach(hierarchy.as_fd(), at.as_fd()).step_on("mount on /sys/fs/cgroup/", label)?;
    }
    // With cgroup v2 `directory` is the hierarchy itself, which has its attributes already.
    if !names.is_empty() {
        sys::mount_setattr(directory, false, u64::from(attributes.bits()), 0)
            .step_on("set attributes of", "/sys/fs/cgroup")?;
    }
    Ok(())
}

/// A detached mount of a directory of the host's hierarchies.
fn part_of_hierarchy(path: &Path, attributes: MountAttrFlags) -> Result<OwnedFd> {
    let origin = open_path(path, OFlags::DIRECTORY).step_on("open cgroup", path)?;
    let mount = clone_tree(origin.as_fd(), false).step_on("clone mount of", path)?;
    sys::mount_setattr(mount.as_fd(), false, u64::from(attributes.bits()), libc::MS_PRIVATE)
        .step_on("set attributes of", path)?;
    Ok(mount)
}

/// A detached mount of a v1 hierarchy: of the controllers in `name`, or of the one that is named so.
fn new_hierarchy(name: &str, attributes: MountAttrFlags) -> IoResult<OwnedFd> {
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    let filesystem = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", "cgroup")?;
    if value.is_empty() {
        for controller in key.split(',') {
            rustix::mount::fsconfig_set_flag(&filesystem, controller)?;
        }
    } else {
        // A named hierarchy, such as systemd's, has no controller.
        rustix::mount::fsconfig_set_flag(&filesystem, "none")?;
        fsconfig_set_string(&filesystem, key, value)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
