//! A conversation with the kernel inside another network namespace.

use std::{fs::File, os::fd::AsFd};

use berth_cni::{Error, code};
use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;

/// An rtnetlink handle of the current namespace. Its socket stays there, wherever the thread goes.
pub(crate) fn here() -> Result<Handle, Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| Error::new(code::IO, format!("netlink: {error}")))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// An rtnetlink handle inside the namespace that `netns` is. The thread, which is the only one, is back when this returns.
pub(crate) fn inside(netns: &File) -> Result<Handle, Error> {
    let path = "/proc/self/ns/net";
    let home = File::open(path).map_err(|error| Error::new(code::IO, format!("open {path}: {error}")))?;
    let enter = |namespace: &File| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::new(code::IO, format!("join network namespace: {errno}")))
    };
    enter(netns)?;
    let handle = here();
    enter(&home)?;
    handle
}
