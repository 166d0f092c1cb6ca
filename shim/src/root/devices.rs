//! Device nodes. They are made, or bound from the host if the container has a user namespace, in
//! which mknod(2) of a device fails with EPERM.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::{Device, DeviceKind};
use rustix::{
    fs::{
        AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat,
        openat, symlinkat, unlinkat,
    },
    io::Errno,
    mount::MountAttrFlags,
    process::umask,
};

use crate::{
    descriptor::is_device,
    error::{Result, Step, failure},
    mount::{
        api::{attach, clone_tree, new_filesystem},
        inside::open_in_root,
        target::{ensure_directory, ensure_file, split},
    },
};

/// "Default Devices" of the OCI runtime specification (config-linux): name, major, minor.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where device nodes come from.
pub(crate) enum Nodes {
    /// From mknod(2).
    Make,
    /// From detached mounts of the host's nodes.
    Bind {
        /// In the order of `NODES`.
        standard: Vec<OwnedFd>,
        /// The devices of the spec, in their order.
        requested: Vec<OwnedFd>,
    },
}

impl Nodes {
    /// Clones the host's nodes. To be called while its /dev is there.
    pub(crate) fn of_host(devices: &[Device]) -> Result<Self> {
        let standard = NODES.iter().map(|(name, major, minor)| {
            clone(&Path::new("/dev").join(name), FileType::CharacterDevice, makedev(*major, *minor))
        });
        let requested = devices
            .iter()
            .map(|device| clone(&device.source, kind(device), makedev(device.major, device.minor)));
        Ok(Self::Bind {
            standard: standard.collect::<Result<_>>()?,
            requested: requested.collect::<Result<_>>()?,
        })
    }

    /// Puts the devices of the spec below the root.
    pub(crate) fn provide(&self, root: BorrowedFd<'_>, devices: &[Device]) -> Result<()> {
        match self {
            Self::Make => devices.iter().try_for_each(|device| make(root, device)),
            Self::Bind { requested, .. } => {
                devices.iter().zip(requested).try_for_each(|(device, node)| {
                    let target = ensure_file(root, &device.path)?;
                    attach(node.as_fd(), target.as_fd()).step_on("mount on", &device.path)
                })
            }
        }
    }
}

/// The device at `path` of the host as a detached mount.
///
/// # Errors
/// Also if it is another device by now: one that was unplugged gives its name to the next.
fn clone(path: &Path, kind: FileType, number: Dev) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(CWD, path, flags, Mode::empty()).step_on("open", path)?;
    match is_device(node.as_fd(), kind, number).step_on("stat", path)? {
        true => clone_tree(node.as_fd(), false).step_on("clone mount of", path),
        false => Err(failure("no longer the device that was asked for:", path)),
    }
}

fn kind(device: &Device) -> FileType {
    match device.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
    }
}

/// Makes the node of `device` below the root. A file of the image in its place is removed.
fn make(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let (parent, name) = split(&device.path)?;
    let parent = ensure_directory(root, &parent)?;
    match unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).step_on("replace", &device.path),
    }
    let kind = kind(device);
    let number = makedev(device.major, device.minor);
    mknod(parent.as_fd(), &name, kind, device.mode, number).step_on("mknod", &device.path)?;
    // The directory may be a volume that others write to, and the name a link to a file of the host
    // by now. chown(2) would change that file, so the owner is set by descriptor, and only if it is
    // the node's.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(&parent, &name, flags, Mode::empty()).step_on("open", &device.path)?;
    if !is_device(node.as_fd(), kind, number).step_on("stat", &device.path)? {
        return Err(failure("replaced while it was made:", &device.path));
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).step_on("chown", &device.path)
}

/// mknod(2) with exactly this mode. It obeys the umask, and a chmod(2) afterwards could change
/// another file that has taken the name.
fn mknod(
    at: BorrowedFd<'_>,
    name: &Path,
    kind: FileType,
    mode: u32,
    number: Dev,
) -> rustix::io::Result<()> {
    let before = umask(Mode::empty());
    let made = mknodat(at, name, kind, Mode::from_raw_mode(mode), number);
    umask(before);
    made
}

/// Fills a new /dev: its nodes, its links, and a devpts of the container's own.
pub(crate) fn populate(dev: BorrowedFd<'_>, nodes: &Nodes, label: Option<&str>) -> Result<()> {
    for (index, (name, major, minor)) in NODES.into_iter().enumerate() {
        match nodes {
            Nodes::Make => {
                let number = makedev(major, minor);
                mknod(dev, Path::new(name), FileType::CharacterDevice, 0o666, number)
                    .step_on("mknod /dev/", name)?;
            }
            Nodes::Bind { standard, .. } => {
                let target = ensure_file(dev, &PathBuf::from("/").join(name))?;
                attach(standard[index].as_fd(), target.as_fd()).step_on("mount on /dev/", name)?;
            }
        }
    }
    // "Dev symbolic links" of the OCI runtime specification (runtime-linux).
    for (link, target) in LINKS {
        symlinkat(target, dev, link).step_on("link /dev/", link)?;
    }
    mkdirat(dev, "pts", Mode::from_raw_mode(0o755)).step_on("make", "/dev/pts")?;
    // Group 5 is tty on every Linux distribution, and what grantpt(3) expects.
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_filesystem("devpts", &options, label, attributes)
        .step_on("make the filesystem for", "/dev/pts")?;
    let at = open_in_root(dev, Path::new("pts"), OFlags::DIRECTORY).step_on("open", "/dev/pts")?;
    attach(pts.as_fd(), at.as_fd()).step_on("mount on", "/dev/pts")
}
