//! Unix sockets in directories with long names.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{SocketAddrUnix, bind},
};

use crate::error::{Result, Step};

/// Binds to `name` in `directory`. The path of both may be longer than the 108 bytes of a socket
/// address (unix(7)), so the kernel is given one through a descriptor of the directory.
pub(crate) fn bind_in(socket: &OwnedFd, directory: &Path, name: &str) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = rustix::fs::open(directory, flags, Mode::empty()).step_on("open", directory)?;
    let path = Path::new("/proc/self/fd").join(at.as_raw_fd().to_string()).join(name);
    // A shim that was killed leaves its socket, and bind(2) does not replace it. This one holds the
    // container's lock, so no other shim listens there. It is no error if there is none.
    let _ = fs::remove_file(&path);
    let address = SocketAddrUnix::new(&path).step_on("name the socket", &path)?;
    bind(socket, &address).step_on("bind", directory.join(name))
}
