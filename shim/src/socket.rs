//! `shim.sock`: listen, read a request with its descriptors, answer.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    layout,
    protocol::{self, MAX_PACKET, Packet, Request},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
    },
};

use crate::error::{Failure, Result, Step};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Binds `shim.sock` in `directory`.
pub(crate) fn open(directory: &Path) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).step("socket")?;
    bind_in(&socket, directory, layout::SOCKET)?;
    listen(&socket, 8).step("listen")?;
    Ok(socket)
}

/// Binds to `name` in `directory`, whose path may be longer than a socket address can hold.
pub(crate) fn bind_in(socket: &OwnedFd, directory: &Path, name: &str) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = rustix::fs::open(directory, flags, Mode::empty()).step_on("open", directory)?;
    let path = Path::new("/proc/self/fd").join(at.as_raw_fd().to_string()).join(name);
    // Left by a shim that was killed; the lock says that it does not live.
    let _ = fs::remove_file(&path);
    let address = SocketAddrUnix::new(&path).step_on("name the socket", &path)?;
    bind(socket, &address).step_on("bind", directory.join(name))
}

pub(crate) fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    accept_with(listener, FLAGS).ok()
}

/// What arrived on a connection.
pub(crate) enum Received {
    Request(Request, Vec<OwnedFd>),
    Garbage(Failure),
    Nothing,
    Closed,
}

pub(crate) fn receive(connection: &OwnedFd) -> Received {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MAX_PACKET];
    let length = match recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Err(_) => return Received::Closed,
    };
    if length == 0 {
        return Received::Closed;
    }
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    match protocol::decode(&bytes[..length]) {
        Ok(request) => Received::Request(request, fds),
        Err(failure) => Received::Garbage(failure),
    }
}

/// A daemon that does not read is one that is gone; it will ask again when it is back.
pub(crate) fn send(connection: &OwnedFd, packet: &Packet) {
    let bytes = protocol::encode(packet);
    let _ =
        sendmsg(connection.as_fd(), &[IoSlice::new(&bytes)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
}
