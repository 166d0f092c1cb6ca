//! Makes the namespaces of a pod, binds them to files and leaves: a sandbox is not a process.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use berth_shim::{layout, record::Found, spec::Pin};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};
use rustix::net::{AddressFamily, SocketType};

use crate::{
    error::{Result, Step, failure},
    sys,
};

/// Reads `pin.json` of `dir` and pins what it names.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let path = dir.join(layout::PIN);
    let Found::Record(pin) = berth_shim::record::read::<Pin>(&path).step_on("read", &path)? else {
        return Err(failure("missing or damaged", &path));
    };
    let namespaces = [
        (&pin.net, CloneFlags::CLONE_NEWNET, "net"),
        (&pin.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (&pin.uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    let flags = namespaces.iter().filter(|(path, ..)| path.is_some()).map(|(_, flag, _)| *flag).collect::<CloneFlags>();
    unshare(flags).step("unshare the pod's namespaces")?;
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
            bind(name, path)?;
        }
    }
    if let Some((path, size)) = &pin.shm {
        let options = format!("mode=1777,size={size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str())).step_on("mount tmpfs on", path)?;
    }
    Ok(())
}

/// Binds `/proc/self/ns/<name>` to `path`, which `umount2` and `unlink` undo.
fn bind(name: &str, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).step_on("make directory", parent)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).step_on("create", path)?;
    let source = format!("/proc/self/ns/{name}");
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).step_on("pin namespace at", path)
}

/// The name was checked by the daemon to have no `..` and to belong to a namespace of the pod.
fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).step_on("set sysctl", name)
}
