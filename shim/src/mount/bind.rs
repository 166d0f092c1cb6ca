//! Bind mounts: files of the host, shown in the container.
//!
//! A bind is prepared while this process still has the host's root, as a detached mount with all of
//! its attributes, and later attached to a place below the container's root.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    record::Stage,
    spec::{Mount, MountKind, Propagation},
};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatFs, StatxFlags, fstatfs, statx},
    io::Errno,
};

use crate::{
    error::{Result, Step, failure, invalid},
    mount::{
        api::{attach, attributes, clone_tree},
        inside::open_plain,
        relabel,
        target::{ensure_directory, ensure_file},
    },
    namespaces::idmap::Idmap,
    process::progress::stage,
    sys,
};

/// The source of a bind as a detached mount that only has to be attached; `None` if `request` is of
/// another kind. `index` is its place in the spec.
pub(crate) fn prepare(
    index: usize,
    request: &Mount,
    label: Option<&str>,
    idmap: Option<&Idmap>,
) -> Result<Option<OwnedFd>> {
    if request.kind == MountKind::HostSysfs {
        return host_sysfs(request).map(Some);
    }
    let MountKind::Bind {
        source,
        propagation,
        recursive_readonly,
        create,
        idmap: maps,
        relabel,
        non_recursive,
    } = &request.kind
    else {
        return Ok(None);
    };
    if *create {
        // The source is a volume and not a file of berth's own. Its file system may not answer, and
        // then the daemon can say which volume it is.
        stage(Stage::Mount(index));
    }
    let origin = open_source(source, *create)?;
    check_propagation(source, &origin, *propagation)?;
    // On the original: a label is a property of the file, not of a mount.
    if let Some(label) = label.filter(|_| *relabel) {
        relabel::relabel(origin.as_fd(), source, label)?;
    }
    let mount = clone_tree(origin.as_fd(), !non_recursive).step_on("clone mount of", source)?;
    let flag = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    // A clone is a peer of its source (mount_namespaces(7)): without this, a mount that the
    // container makes in it would appear on the host.
    sys::mount_setattr(mount.as_fd(), true, 0, flag).step_on("set propagation of", source)?;
    if let Some(idmap) = idmap.filter(|_| *maps) {
        // Only while the mount is detached (mount_setattr(2)).
        sys::idmap(mount.as_fd(), true, idmap.namespace.as_fd())
            .step_on("map the owners of", source)?;
    }
    // By mount_setattr(2) and not mount(2): MS_BIND ignores such flags, and a remount would drop
    // those that the source has already.
    let attributes = u64::from(attributes(request).bits());
    if attributes != 0 {
        sys::mount_setattr(mount.as_fd(), *recursive_readonly, attributes, 0)
            .step_on("set attributes of", source)?;
    }
    Ok(Some(mount))
}

/// The host's sysfs without what is mounted below it. Cloned while this process still has the
/// host's root: in a user namespace the kernel refuses to clone a mount without those below it,
/// which may be there to hide something.
fn host_sysfs(request: &Mount) -> Result<OwnedFd> {
    let source = Path::new("/sys");
    let mount =
        clone_tree(open_source(source, false)?.as_fd(), false).step_on("clone mount of", source)?;
    let attributes = u64::from(attributes(request).bits());
    sys::mount_setattr(mount.as_fd(), false, attributes, libc::MS_PRIVATE)
        .step_on("set attributes of", source)?;
    Ok(mount)
}

/// Refuses a propagation that the source cannot have: a mount that shares nothing passes on nothing
/// of what is mounted in it later (`MountPropagation` of CRI).
fn check_propagation(source: &Path, origin: &OwnedFd, wanted: Propagation) -> Result<()> {
    let tags: &[&str] = match wanted {
        Propagation::Private => return Ok(()),
        Propagation::Slave => &["shared:", "master:"],
        Propagation::Shared => &["shared:"],
    };
    let id = statx(origin, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .step_on("statx", source)?
        .stx_mnt_id;
    let table =
        fs::read_to_string("/proc/self/mountinfo").step_on("read", "/proc/self/mountinfo")?;
    // proc_pid_mountinfo(5): the optional fields are between the sixth field and a single dash.
    let line = table
        .lines()
        .find(|line| line.split(' ').next().and_then(|field| field.parse().ok()) == Some(id));
    let fields =
        line.into_iter().flat_map(|line| line.split(' ').skip(6).take_while(|field| *field != "-"));
    let shares = fields.into_iter().any(|field| tags.iter().any(|tag| field.starts_with(tag)));
    let what = if wanted == Propagation::Slave {
        "not on a shared or slave mount:"
    } else {
        "not on a shared mount:"
    };
    if shares { Ok(()) } else { Err(invalid(what, source)) }
}

/// Opens a path of the host. Symbolic links are followed, as the kubelet expects.
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

/// Attaches a mount to the target of `request`, which is made if it is missing.
pub(crate) fn attach_below(root: BorrowedFd<'_>, request: &Mount, mount: &OwnedFd) -> Result<()> {
    // A directory can only be mounted on a directory, and a file on a file.
    let stat = rustix::fs::fstat(mount).step_on("stat", &request.target)?;
    let target = if FileType::from_raw_mode(stat.st_mode).is_dir() {
        ensure_directory(root, &request.target)?
    } else {
        ensure_file(root, &request.target)?
    };
    if leads_to_kernel(root, &request.target, &target) {
        return Err(failure(
            "a link of the image leads into the kernel's own files:",
            &request.target,
        ));
    }
    // By descriptor: nothing can be put in the place of the target in between.
    attach(mount.as_fd(), target.as_fd()).step_on("mount on", &request.target)
}

/// Whether a link in `path` has led to `target` in /proc or /sys. A file of a volume there would
/// pass for what the kernel says, for example of AppArmor (CVE-2019-19921). A pod that names such a
/// path itself means it.
fn leads_to_kernel(root: BorrowedFd<'_>, path: &Path, target: &OwnedFd) -> bool {
    let is_led = open_plain(root, path, OFlags::empty()).is_err_and(|errno| errno == Errno::LOOP);
    let of_kernel =
        |found: StatFs| [libc::PROC_SUPER_MAGIC, libc::SYSFS_MAGIC].contains(&found.f_type);
    // proc and sysfs always answer statfs(2), so an error comes from another file system.
    is_led && fstatfs(target).is_ok_and(of_kernel)
}
