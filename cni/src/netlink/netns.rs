//! rtnetlink sockets in this network namespace and in another one.

use std::{fs::File, os::fd::AsFd};

use berth_cni::{Error, code};
use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;

/// An rtnetlink handle for the current namespace. A netlink socket belongs to the namespace in
/// which it was made (netlink(7)), wherever the thread goes afterwards.
pub(crate) fn here() -> Result<Handle, Error> {
    let (mut connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| Error::new(code::IO, format!("netlink: {error}")))?;
    // The message NLMSG_DONE at the end of a list may carry an error and NLM_F_DUMP_INTR, which
    // `request::dump` wants to see.
    connection.set_forward_done(true);
    tokio::spawn(connection);
    Ok(handle)
}

/// An rtnetlink handle for the namespace that `netns` is. The thread enters it for the moment of
/// making the socket, and is back when this returns.
///
/// # Errors
/// The namespace cannot be entered.
pub(crate) fn inside(netns: &File) -> Result<Handle, Error> {
    let path = "/proc/self/ns/net";
    let home =
        File::open(path).map_err(|error| Error::new(code::IO, format!("open {path}: {error}")))?;
    enter(netns)?;
    let handle = here();
    // Also when there is no handle: what follows belongs to the host. Failing to come back is an
    // error of the call, so that nothing is done in the wrong namespace.
    enter(&home)?;
    handle
}

fn enter(namespace: &File) -> Result<(), Error> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::new(code::IO, format!("join network namespace: {errno}")))
}
