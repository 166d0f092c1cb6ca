//! The unix sockets that the daemon serves.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use anyhow::Context;
use nix::unistd::Group;
use tokio::net::UnixListener;

/// Listens on the unix socket `path`, for root, and for `group` if there is one.
///
/// The socket of an earlier daemon is replaced. That daemon is gone, since this one holds the lock
/// of the root directory.
///
/// # Errors
/// The socket cannot be made, or there is no such group.
pub fn listen(path: &Path, group: Option<&str>) -> anyhow::Result<UnixListener> {
    let during = || format!("listen on {}", path.display());
    let group = match group {
        Some(name) => {
            let group = Group::from_name(name).with_context(during)?;
            let missing = || format!("{}: no group {name:?}: groupadd {name}", during());
            Some(group.with_context(missing)?.gid.as_raw())
        }
        None => None,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(during)?;
    }
    // bind(2) fails on a path that exists, so a stale socket has to be removed first.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(during);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(during)?;
    if group.is_some() {
        chown(path, None, group).with_context(during)?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(during)?;
    Ok(listener)
}
