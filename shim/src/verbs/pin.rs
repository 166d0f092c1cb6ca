//! `pin`: makes the namespaces of a pod, binds them to files and exits. A sandbox is not a
//! process.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use berth_shim::{
    layout,
    record::{self, Found},
    spec::{Pin, PinnedUser},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::sethostname,
};
use rustix::{
    fs::FlockOperation,
    net::{AddressFamily, SocketType},
};

use crate::{
    error::{Result, Step, failure},
    namespaces::user::user_namespace,
    steps::{At, begin},
    sys,
};

/// Reads `pin.json` of `dir` and pins what it names.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let path = dir.join(layout::PIN);
    let _claim = claim(&path)?;
    let Found::Record(pin) = record::read::<Pin>(&path).step_on("read", &path)? else {
        return Err(failure("missing or damaged:", &path));
    };
    let namespaces = [
        (&pin.net, CloneFlags::CLONE_NEWNET, "net", At::PinNet),
        (&pin.ipc, CloneFlags::CLONE_NEWIPC, "ipc", At::PinIpc),
        (&pin.uts, CloneFlags::CLONE_NEWUTS, "uts", At::PinUts),
    ];
    let flags = namespaces
        .iter()
        .filter(|(path, ..)| path.is_some())
        .map(|(_, flag, ..)| *flag)
        .collect::<CloneFlags>();
    begin(At::PinUnshare)?;
    match &pin.user {
        None => unshare(flags).step("unshare the pod's namespaces")?,
        Some(user) => make_owned(user, flags)?,
    }
    // Everything below happens in the new namespaces, and before a container can be in them.
    if pin.net.is_some() {
        // A network namespace begins with its loopback interface down, and CNI leaves it to the
        // runtime.
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).step("socket")?;
        sys::loopback_up(socket.as_fd()).step_on("bring up", "lo")?;
    }
    if let (Some(hostname), Some(_)) = (&pin.hostname, &pin.uts) {
        sethostname(hostname).step_on("set hostname", hostname)?;
    }
    // /proc/sys shows the values of the namespaces of the process that opens a file in it.
    for (name, value) in &pin.sysctls {
        write_sysctl(name, value)?;
    }
    // Last, so that a file that is bound is a namespace that is ready.
    for (path, _, name, step) in namespaces {
        if let Some(path) = path {
            begin(step)?;
            bind(&format!("/proc/self/ns/{name}"), path)?;
        }
    }
    begin(At::PinShm)?;
    mount_shm(&pin)
}

/// Mounts the pod's /dev/shm, which all of its containers share as they share its IPC namespace.
fn mount_shm(pin: &Pin) -> Result<()> {
    let Some((path, size)) = &pin.shm else { return Ok(()) };
    // Root of the pod's user namespace has to own it, or no process of the pod could write to it.
    let (uid, gid) = pin.user.as_ref().map_or((0, 0), |user| (user.uids.host, user.gids.host));
    let label = pin.label.as_ref().map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    let options = format!("mode=1777,size={size},uid={uid},gid={gid}{label}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .step_on("mount tmpfs on", path)
}

/// Locks `pin.json` for as long as this process lives. Whoever removes the pod takes the same lock:
/// a pin whose daemon was killed has either ended by then, or finds nothing to pin.
fn claim(path: &Path) -> Result<File> {
    let file = File::open(path).step_on("open", path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).step_on("lock", path)?;
    // The pod may have been removed and a new one made while this process waited for the lock. The
    // lock is then that of a deleted file.
    let locked = file.metadata().step_on("stat", path)?;
    let named = fs::metadata(path).step_on("stat", path)?;
    if locked.ino() != named.ino() {
        return Err(failure("the pod was removed, and another one made, at", path));
    }
    Ok(file)
}

/// Makes a user namespace with the namespaces of `flags` in it, so that it owns them, and enters
/// those. The user namespace itself is not entered: binding files needs root of the host.
fn make_owned(user: &PinnedUser, flags: CloneFlags) -> Result<()> {
    let holder = user_namespace((user.uids, user.gids), flags)?;
    bind(&format!("/proc/{}/ns/user", holder.pid), &user.path)?;
    setns(holder.pidfd, flags).step("enter the pod's namespaces")
}

/// Binds the namespace file `source` to `path`, which keeps the namespace alive without a process.
/// umount2(2) and unlink(2) undo it.
fn bind(source: &str, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).step_on("make directory", parent)?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .step_on("create", path)?;
    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .step_on("pin namespace at", path)
}

/// The daemon has checked that the name has no `..` and belongs to a namespace of the pod.
fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).step_on("set sysctl", name)
}
