//! What this machine can do, tried out.

use std::{fs::File, os::fd::AsFd, path::Path};

use berth_shim::spec::IdMapping;
use nix::sched::CloneFlags;

use crate::{
    error::{Result, Step},
    mounts, pin, sys,
};

/// Fails unless files in `dir` can be shown through a user namespace, and layers be given one by one, which that needs.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let overlay =
        rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).step("fsopen overlay")?;
    rustix::mount::fsconfig_set_string(&overlay, "lowerdir+", dir).step("give overlayfs a layer by itself")?;
    let ids = IdMapping { host: 100_000, length: 65_536 };
    let child = pin::user_namespace((ids, ids), CloneFlags::empty())?;
    let path = format!("/proc/{}/ns/user", child.pid);
    let user = File::open(&path).step_on("open namespace", &path)?;
    let at = File::open(dir).step_on("open", dir)?;
    let mount = mounts::clone_tree(at.as_fd(), false).step_on("clone mount of", dir)?;
    sys::idmap(mount.as_fd(), false, user.as_fd()).step_on("map the owners of", dir)
}
