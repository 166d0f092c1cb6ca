//! Device nodes: made, or bound from the host where a user namespace forbids to make them.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::{Device, DeviceKind};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, mknodat, openat, symlinkat, unlinkat,
    },
    io::Errno,
    mount::MountAttrFlags,
};

use crate::{
    error::{Result, Step},
    mounts::{attach, clone_tree, ensure_directory, ensure_file, new_filesystem, split},
    rootfs::open_in_root,
};

/// "Default Devices" of the OCI runtime specification (config-linux): name, major, minor.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where nodes come from.
pub(crate) enum Nodes {
    Make,
    /// Detached mounts of the host's: those of `NODES`, and those of the request, both in their order.
    Bind {
        own: Vec<OwnedFd>,
        asked: Vec<OwnedFd>,
    },
}

impl Nodes {
    /// Takes the host's nodes, as long as its /dev is there.
    pub(crate) fn of_host(devices: &[Device]) -> Result<Self> {
        let clone = |path: &Path| -> Result<OwnedFd> {
            let node = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step_on("open", path)?;
            clone_tree(node.as_fd(), false).step_on("clone mount of", path)
        };
        let own = NODES.iter().map(|(name, ..)| clone(&Path::new("/dev").join(name))).collect::<Result<_>>()?;
        Ok(Self::Bind { own, asked: devices.iter().map(|device| clone(&device.source)).collect::<Result<_>>()? })
    }

    /// The nodes of the request.
    pub(crate) fn provide(&self, root: BorrowedFd<'_>, devices: &[Device]) -> Result<()> {
        match self {
            Self::Make => devices.iter().try_for_each(|device| make(root, device)),
            Self::Bind { asked, .. } => devices.iter().zip(asked).try_for_each(|(device, node)| {
                let target = ensure_file(root, &device.path)?;
                attach(node.as_fd(), target.as_fd()).step_on("mount on", &device.path)
            }),
        }
    }
}

/// Makes the node of `device`; what the image has in its place goes first.
fn make(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let (parent, name) = split(&device.path)?;
    let parent = ensure_directory(root, &parent)?;
    let kind = match device.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
    };
    match unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).step_on("replace", &device.path),
    }
    let (mode, number) = (Mode::from_raw_mode(device.mode), rustix::fs::makedev(device.major, device.minor));
    mknodat(&parent, &name, kind, mode, number).step_on("mknod", &device.path)?;
    // mknod obeys the umask.
    chmodat(&parent, &name, mode, AtFlags::empty()).step_on("chmod", &device.path)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).step_on("chown", &device.path)
}

/// Nodes, links and devpts of a new /dev.
pub(crate) fn populate(dev: BorrowedFd<'_>, nodes: &Nodes, label: Option<&str>) -> Result<()> {
    for (index, (name, major, minor)) in NODES.into_iter().enumerate() {
        match nodes {
            Nodes::Make => {
                let (mode, number) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
                mknodat(dev, name, FileType::CharacterDevice, mode, number).step_on("mknod /dev/", name)?;
                chmodat(dev, name, mode, AtFlags::empty()).step_on("chmod /dev/", name)?;
            }
            Nodes::Bind { own, .. } => {
                let target = ensure_file(dev, &PathBuf::from("/").join(name))?;
                attach(own[index].as_fd(), target.as_fd()).step_on("mount on /dev/", name)?;
            }
        }
    }
    for (link, target) in LINKS {
        symlinkat(target, dev, link).step_on("link /dev/", link)?;
    }
    mkdirat(dev, "pts", Mode::from_raw_mode(0o755)).step_on("make", "/dev/pts")?;
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts = new_filesystem("devpts", &options, label, attributes).step_on("make the filesystem for", "/dev/pts")?;
    let at = open_in_root(dev, Path::new("pts"), OFlags::DIRECTORY).step_on("open", "/dev/pts")?;
    attach(pts.as_fd(), at.as_fd()).step_on("mount on", "/dev/pts")
}
