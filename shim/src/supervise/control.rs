//! `shim.sock`: listens, reads requests with their descriptors, and sends packets. Nothing blocks.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    layout,
    protocol::{self, MAX_PACKET, Packet, Request},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendFlags, SocketFlags, SocketType, accept_with, recvmsg, sendmsg, socket_with,
    },
};

use crate::{
    error::{Failure, Result, Step},
    process::socket::bind_in,
};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Listens at `shim.sock` in `directory`.
pub(crate) fn listen(directory: &Path) -> Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).step("socket")?;
    bind_in(&socket, directory, layout::SOCKET)?;
    rustix::net::listen(&socket, 8).step("listen")?;
    Ok(socket)
}

/// The connection of one more daemon. `None` if it is gone again, or there is no descriptor for it.
pub(crate) fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    accept_with(listener, FLAGS).ok()
}

/// What has arrived on a connection.
pub(crate) enum Received {
    Request(Request, Vec<OwnedFd>),
    /// A packet that is no request, or one of a newer daemon, under this id.
    Unknown(u64, Failure),
    /// Nothing yet.
    Nothing,
    /// The daemon is gone.
    Closed,
}

/// Reads one packet.
pub(crate) fn receive(connection: &OwnedFd) -> Received {
    // An exec comes with the most: its request and three streams.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MAX_PACKET];
    let length = match recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    ) {
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
        Err(failure) => Received::Unknown(protocol::request_id(&bytes[..length]), failure),
    }
}

/// Sends one packet. An error is ignored: a daemon that is gone, or that does not read (EAGAIN),
/// asks again when it is back.
pub(crate) fn send(connection: &OwnedFd, packet: &Packet) {
    let bytes = protocol::encode(packet);
    let _ = sendmsg(
        connection.as_fd(),
        &[IoSlice::new(&bytes)],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    );
}
