//! The mounts of the container: attaches what was prepared on the host's side, and makes the file
//! systems of the kernel's that belong to the container's namespaces.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
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
        api::{attach, attributes, new_filesystem},
        bind::attach_below,
        inside::open_in_root,
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
        MountKind::Cgroup { v1 } if v1.is_empty() => {
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
        MountKind::Cgroup { v1 } => mount_hierarchies(mount.as_fd(), v1, attributes),
        // In a user namespace the file system belongs to that, and this process may not label it.
        MountKind::Mqueue => label
            .filter(|_| matches!(nodes, Nodes::Make))
            .map_or(Ok(()), |label| relabel::label(mount.as_fd(), label).step_on("label", target)),
        _ => Ok(()),
    }
}

/// Fills /sys/fs/cgroup on a host with cgroup v1: one directory for each hierarchy, whose root is
/// the container's own cgroup because of the cgroup namespace.
fn mount_hierarchies(
    directory: BorrowedFd<'_>,
    names: &[String],
    attributes: MountAttrFlags,
) -> Result<()> {
    for name in names {
        let label = name.strip_prefix("name=").unwrap_or(name);
        mkdirat(directory, label, Mode::from_raw_mode(0o755))
            .step_on("make /sys/fs/cgroup/", label)?;
        let at = open_in_root(directory, Path::new(label), OFlags::DIRECTORY)
            .step_on("open /sys/fs/cgroup/", label)?;
        let (key, value) = name.split_once('=').unwrap_or((name, ""));
        let hierarchy =
            new_hierarchy(key, value, attributes).step_on("mount /sys/fs/cgroup/", label)?;
        attach(hierarchy.as_fd(), at.as_fd()).step_on("mount on /sys/fs/cgroup/", label)?;
    }
    // With cgroup v2 `directory` is the hierarchy itself, which has its attributes already.
    if !names.is_empty() {
        sys::mount_setattr(directory, false, u64::from(attributes.bits()), 0)
            .step_on("set attributes of", "/sys/fs/cgroup")?;
    }
    Ok(())
}

/// A detached mount of a v1 hierarchy: of the controllers in `key`, or of the one named `value`.
fn new_hierarchy(key: &str, value: &str, attributes: MountAttrFlags) -> IoResult<OwnedFd> {
    let filesystem = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
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
