//! Makes the namespaces of a pod, binds them to files and leaves: a sandbox is not a process.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use berth_shim::{
    layout,
    record::Found,
    spec::{IdMapping, Pin, PinnedUser},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Pid, sethostname},
};
use rustix::{
    fs::FlockOperation,
    net::{AddressFamily, SocketType},
};

use crate::{
    error::{Result, Step, failure},
    init,
    sys::{self, Fork},
};

/// Reads `pin.json` of `dir` and pins what it names.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let path = dir.join(layout::PIN);
    let _claim = claim(&path)?;
    let Found::Record(pin) = berth_shim::record::read::<Pin>(&path).step_on("read", &path)? else {
        return Err(failure("missing or damaged", &path));
    };
    let namespaces = [
        (&pin.net, CloneFlags::CLONE_NEWNET, "net"),
        (&pin.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (&pin.uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    let flags = namespaces.iter().filter(|(path, ..)| path.is_some()).map(|(_, flag, _)| *flag).collect::<CloneFlags>();
    match &pin.user {
        None => unshare(flags).step("unshare the pod's namespaces")?,
        Some(user) => make_owned(user, flags)?,
    }
    if pin.net.is_some() {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).step("socket")?;
        sys::loopback_up(std::os::fd::AsFd::as_fd(&socket)).step_on("bring up", "lo")?;
    }
    if let (Some(hostname), Some(_)) = (&pin.hostname, &pin.uts) {
        sethostname(hostname).step_on("set hostname", hostname)?;
    }
    for (name, value) in &pin.sysctls {
        write_sysctl(name, value)?;
    }
    for (path, _, name) in namespaces {
        if let Some(path) = path {
            bind(&format!("/proc/self/ns/{name}"), path)?;
        }
    }
    if let Some((path, size)) = &pin.shm {
        let (uid, gid) = pin.user.as_ref().map_or((0, 0), |user| (user.uids.host, user.gids.host));
        let label = pin.label.as_ref().map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
        let options = format!("mode=1777,size={size},uid={uid},gid={gid}{label}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str())).step_on("mount tmpfs on", path)?;
    }
    Ok(())
}

/// Locks `pin.json` for as long as this process lives. Who removes the pod holds the same lock, so that a pin whose daemon was killed
/// has either ended before, or finds nothing to pin.
fn claim(path: &Path) -> Result<File> {
    let file = File::open(path).step_on("open", path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).step_on("lock", path)?;
    let (own, there) = (file.metadata().step_on("look at", path)?, fs::metadata(path).step_on("look at", path)?);
    if own.ino() != there.ino() {
        return Err(failure("the pod was removed, and made anew:", path));
    }
    Ok(file)
}

/// Makes a user namespace and the others in it, so that it owns them, and enters all but itself: this process stays root of the
/// host.
fn make_owned(user: &PinnedUser, flags: CloneFlags) -> Result<()> {
    let child = user_namespace((user.uids, user.gids), flags)?;
    bind(&format!("/proc/{}/ns/user", child.pid), &user.path)?;
    setns(child.pidfd, flags).step("enter the pod's namespaces")
}

/// A process in new namespaces, which ends when this is dropped.
pub(crate) struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    _alive: OwnedFd,
}

/// Who enters a user namespace cannot come back: a child makes it, with those of `flags` in it.
pub(crate) fn user_namespace((uids, gids): (IdMapping, IdMapping), flags: CloneFlags) -> Result<Child> {
    let (ours, theirs) = init::channel()?;
    match sys::clone3((flags | CloneFlags::CLONE_NEWUSER).bits(), None).step("make a user namespace")? {
        Fork::Child => {
            drop(ours);
            let _ = rustix::io::read(&theirs, &mut [0]);
            std::process::exit(0)
        }
        Fork::Parent { pid, pidfd } => {
            for (file, ids) in [("uid_map", uids), ("gid_map", gids)] {
                let path = format!("/proc/{pid}/{file}");
                fs::write(&path, format!("0 {} {}", ids.host, ids.length))
                    .step_on("map the ids of the pod in", &path)?;
            }
            Ok(Child { pid, pidfd, _alive: ours })
        }
    }
}

/// Binds the namespace file `source` to `path`, which `umount2` and `unlink` undo.
fn bind(source: &str, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).step_on("make directory", parent)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).step_on("create", path)?;
    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).step_on("pin namespace at", path)
}

/// The name was checked by the daemon to have no `..` and to belong to a namespace of the pod.
fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).step_on("set sysctl", name)
}
