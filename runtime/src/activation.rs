//! Sockets that systemd has made for the daemon (sd_listen_fds(3)). They take clients before it
//! serves and while it is started anew, and a socket unit says who may connect.

use std::{fs, os::unix::net, path::Path};

use anyhow::Context;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::net::UnixListener;

/// The socket at `path`, if systemd has made it. It is found by its path, so that its unit may have
/// any name.
///
/// # Errors
/// The environment of the process says what it does not have.
pub(crate) fn socket_at(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    let passed = sd_notify::listen_fds().context("take the sockets of systemd")?;
    if passed.len() == 0 {
        return Ok(None);
    }
    let own = pidfd_open(getpid(), PidfdFlags::empty()).context("pidfd_open")?;
    for number in passed {
        // A descriptor that is known by its number only. It is copied, as of another process,
        // because the number may be somebody else's by the time that it would be closed.
        let socket = pidfd_getfd(&own, number, PidfdGetfdFlags::empty())
            .with_context(|| format!("take descriptor {number} of systemd"))?;
        let socket = net::UnixListener::from(socket);
        let address = socket.local_addr().ok();
        if address.and_then(|address| Some(is_same(address.as_pathname()?, path))) == Some(true) {
            socket.set_nonblocking(true).context("the socket of systemd")?;
            return UnixListener::from_std(socket).context("the socket of systemd").map(Some);
        }
    }
    Ok(None)
}

/// Whether two paths are of one file, as /var/run/docker.sock and /run/docker.sock are.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|o| o == one))
}
