//! `probe`: tries whether pods can have user namespaces on this machine.

use std::{fs::File, os::fd::AsFd, path::Path};

use berth_shim::spec::IdMapping;
use nix::sched::CloneFlags;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use crate::{
    error::{Result, Step},
    mount::api::clone_tree,
    namespaces::user::user_namespace,
    sys,
};

/// Fails unless files in `dir` can be shown through a user namespace.
pub(crate) fn run(dir: &Path) -> Result<()> {
    // Idmapped layers are given to overlayfs one by one: `lowerdir+`, Linux 6.5.
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step("fsopen overlay")?;
    fsconfig_set_string(&overlay, "lowerdir+", dir).step("give overlayfs a layer by itself")?;
    // Whether a file system allows idmapped mounts can only be tried (mount_setattr(2), EINVAL).
    // Which ids are mapped makes no difference.
    let ids = IdMapping { host: 100_000, length: 65_536 };
    let holder = user_namespace((ids, ids), CloneFlags::empty())?;
    let path = format!("/proc/{}/ns/user", holder.pid);
    let user = File::open(&path).step_on("open namespace", &path)?;
    let at = File::open(dir).step_on("open", dir)?;
    let mount = clone_tree(at.as_fd(), false).step_on("clone mount of", dir)?;
    sys::idmap(mount.as_fd(), false, user.as_fd()).step_on("map the owners of", dir)
}
