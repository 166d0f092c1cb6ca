//! One mount of the container: made detached, given its attributes, then moved onto a descriptor inside the root.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use berth_shim::{
    record::Stage,
    spec::{Mount, MountKind, Propagation},
};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, mkdirat, mknodat, readlinkat, statx},
    io::{Errno, Result as IoResult},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
        fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::{
    devices::{self, Nodes},
    error::{Result, Step, failure},
    namespaces::Idmap,
    rootfs::open_in_root,
    run, selinux, sys,
};

/// The source of a bind, as a detached mount that only has to be attached; `None` if it is of another kind. `index` is its place in
/// the spec.
pub(crate) fn prepare(
    index: usize,
    request: &Mount,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<Option<OwnedFd>> {
    let MountKind::Bind { source, propagation, recursive_readonly, create, idmap: mapped, relabel } = &request.kind
    else {
        return Ok(None);
    };
    if *create {
        // What is not berth's own may be on a filesystem that does not answer.
        run::stage(Stage::Mount(index));
    }
    let origin = open_source(source, *create)?;
    check_propagation(source, &origin, *propagation)?;
    if let Some(label) = label.filter(|_| *relabel) {
        selinux::relabel(origin.as_fd(), source, label)?;
    }
    let mount = clone_tree(origin.as_fd(), true).step_on("clone mount of", source)?;
    let flag = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    sys::mount_setattr(mount.as_fd(), true, 0, flag).step_on("set propagation of", source)?;
    if let Some(idmap) = idmap.filter(|_| *mapped) {
        sys::idmap(mount.as_fd(), true, idmap.namespace.as_fd()).step_on("map the owners of", source)?;
    }
    let attributes = u64::from(attributes(request).bits());
    if attributes != 0 {
        sys::mount_setattr(mount.as_fd(), *recursive_readonly, attributes, 0).step_on("set attributes of", source)?;
    }
    Ok(Some(mount))
}

/// A mount that shares nothing cannot pass on what is mounted in it later (`MountPropagation` of CRI).
fn check_propagation(source: &Path, origin: &OwnedFd, wanted: Propagation) -> Result<()> {
    let tags: &[&str] = match wanted {
        Propagation::Private => return Ok(()),
        Propagation::Slave => &["shared:", "master:"],
        Propagation::Shared => &["shared:"],
    };
    let id = statx(origin, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).step_on("statx", source)?.stx_mnt_id;
    let table = fs::read_to_string("/proc/self/mountinfo").step_on("read", "/proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the optional fields are between the sixth field and a single dash.
    let line = table.lines().find(|line| line.split(' ').next().and_then(|field| field.parse().ok()) == Some(id));
    let fields = line.into_iter().flat_map(|line| line.split(' ').skip(6).take_while(|field| *field != "-"));
    let shares = fields.into_iter().any(|field| tags.iter().any(|tag| field.starts_with(tag)));
    let what = if wanted == Propagation::Slave { "not on a shared or slave mount:" } else { "not on a shared mount:" };
    if shares { Ok(()) } else { Err(failure(what, source)) }
}

/// Mounts `request` below `root`; `prepared` is what was made of it before.
pub(crate) fn apply(
    root: BorrowedFd<'_>,
    request: &Mount,
    prepared: Option<&OwnedFd>,
    label: Option<&str>,
    nodes: &Nodes,
) -> Result<()> {
    if let Some(mount) = prepared {
        return bind(root, request, mount);
    }
    let attributes = attributes(request);
    let target = &request.target;
    let mount = match &request.kind {
        MountKind::Bind { .. } | MountKind::Image { .. } | MountKind::Volume { .. } => {
            return Err(failure("not prepared:", target));
        }
        MountKind::Proc => new_filesystem("proc", &[], None, attributes),
        MountKind::Sysfs => new_filesystem("sysfs", &[], None, attributes),
        // There since the IPC namespace was made, and labelled below.
        MountKind::Mqueue => new_filesystem("mqueue", &[], None, attributes),
        MountKind::Cgroup { v1 } if v1.is_empty() => new_filesystem("cgroup2", &[], None, attributes),
        MountKind::Cgroup { .. } | MountKind::Dev => new_filesystem(
            "tmpfs",
            &[("mode", "755"), ("size", "65536")],
            label,
            attributes - MountAttrFlags::MOUNT_ATTR_RDONLY,
        ),
        MountKind::Tmpfs { size, mode } => {
            let (mode, size) = (format!("{mode:o}"), size.to_string());
            let options = [("mode", mode.as_str()), ("size", size.as_str())];
            new_filesystem("tmpfs", if size == "0" { &options[..1] } else { &options }, label, attributes)
        }
    }
    .step_on("make the filesystem for", target)?;
    let at = ensure_directory(root, target)?;
    attach(mount.as_fd(), at.as_fd()).step_on("mount on", target)?;
    match &request.kind {
        MountKind::Dev => devices::populate(mount.as_fd(), nodes, label),
        MountKind::Cgroup { v1 } => mount_hierarchies(mount.as_fd(), v1, attributes),
        // In a user namespace it is not this process' to label.
        MountKind::Mqueue => label
            .filter(|_| matches!(nodes, Nodes::Make))
            .map_or(Ok(()), |label| selinux::label(mount.as_fd(), label).step_on("label", target)),
        _ => Ok(()),
    }
}

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

/// A detached mount of a new filesystem, whose files bear `label`.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    label: Option<&str>,
    attributes: MountAttrFlags,
) -> IoResult<OwnedFd> {
    let filesystem = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options.iter().copied().chain(label.map(|label| ("context", label))) {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of the mount at `source`, as a bind mount makes it.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> IoResult<OwnedFd> {
    let recursive = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(source, "", flags | recursive)
}

/// Moves a detached mount onto the directory or file that `target` is.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> IoResult<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Opens a path of the host, following symbolic links as the kubelet expects.
fn open_source(source: &Path, create: bool) -> Result<OwnedFd> {
    let open = || rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) if create => {
            fs::create_dir_all(source).step_on("make directory", source)?;
            open()
        }
        result => result,
    }
    .step_on("open mount source", source)
}

fn bind(root: BorrowedFd<'_>, request: &Mount, mount: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::fstat(mount).step_on("stat", &request.target)?;
    let target = if FileType::from_raw_mode(stat.st_mode).is_dir() {
        ensure_directory(root, &request.target)?
    } else {
        ensure_file(root, &request.target)?
    };
    attach(mount.as_fd(), target.as_fd()).step_on("mount on", &request.target)
}

/// How many dangling links one target may go through, as path_resolution(7) has it.
const MAX_LINKS: u32 = 40;

/// Opens the directory `path` below the root, making what is missing.
pub(crate) fn ensure_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    ensure(root, path, FileType::Directory, MAX_LINKS)
}

/// Opens the file `path` below the root, making it and its directories when missing.
pub(crate) fn ensure_file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    ensure(root, path, FileType::RegularFile, MAX_LINKS)
}

fn ensure(root: BorrowedFd<'_>, path: &Path, kind: FileType, links: u32) -> Result<OwnedFd> {
    let directory = kind == FileType::Directory;
    let flags = if directory { OFlags::DIRECTORY } else { OFlags::empty() };
    match open_in_root(root, path, flags) {
        Err(Errno::NOENT) => {}
        result => return result.step_on("open mount target", path),
    }
    let (parent_path, name) = split(path)?;
    let parent = ensure(root, &parent_path, FileType::Directory, links)?;
    let made = match directory {
        true => mkdirat(&parent, &name, Mode::from_raw_mode(0o755)),
        false => mknodat(&parent, &name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // A link to what is not there: its target is made, below the same root.
        Err(Errno::EXIST) if links > 0 => {
            let target = readlinkat(&parent, &name, Vec::new()).step_on("read link", path)?;
            let target = parent_path.join(OsStr::from_bytes(target.as_bytes()));
            ensure(root, &target, kind, links - 1)
        }
        result => {
            result.step_on("make mount target", path)?;
            open_in_root(parent.as_fd(), &name, flags | OFlags::NOFOLLOW).step_on("open mount target", path)
        }
    }
}

pub(crate) fn split(path: &Path) -> Result<(PathBuf, PathBuf)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.into())),
        _ => Err(failure("not a mount target", path)),
    }
}

/// /sys/fs/cgroup on a v1 host: a tmpfs with one directory per hierarchy, each rooted at the container's own cgroup.
fn mount_hierarchies(directory: BorrowedFd<'_>, names: &[String], attributes: MountAttrFlags) -> Result<()> {
    for name in names {
        let label = name.strip_prefix("name=").unwrap_or(name);
        mkdirat(directory, label, Mode::from_raw_mode(0o755)).step_on("make /sys/fs/cgroup/", label)?;
        let at = open_in_root(directory, Path::new(label), OFlags::DIRECTORY).step_on("open /sys/fs/cgroup/", label)?;
        let (key, value) = name.split_once('=').unwrap_or((name, ""));
        let hierarchy = new_hierarchy(key, value, attributes).step_on("mount /sys/fs/cgroup/", label)?;
        attach(hierarchy.as_fd(), at.as_fd()).step_on("mount on /sys/fs/cgroup/", label)?;
    }
    if !names.is_empty() {
        sys::mount_setattr(directory, false, u64::from(attributes.bits()), 0)
            .step_on("set attributes of", "/sys/fs/cgroup")?;
    }
    Ok(())
}

fn new_hierarchy(key: &str, value: &str, attributes: MountAttrFlags) -> IoResult<OwnedFd> {
    let filesystem = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if value.is_empty() {
        for controller in key.split(',') {
            rustix::mount::fsconfig_set_flag(&filesystem, controller)?;
        }
    } else {
        rustix::mount::fsconfig_set_flag(&filesystem, "none")?;
        fsconfig_set_string(&filesystem, key, value)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
