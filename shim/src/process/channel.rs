//! The channel between the monitor and a child that becomes a program.
//!
//! Every message is one packet of a SOCK_SEQPACKET pair, in JSON, with at most one descriptor.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use berth_shim::{protocol::MAX_PACKET, record::ResolvedUser};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result, Step};

/// What a child says before it becomes its program. That it has become it is said by end-of-file,
/// because the child's end is close-on-exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The namespaces exist and nothing is mounted yet. Sent only when there are hooks, which the
    /// parent runs now; it answers with `Proceed`.
    Created,
    Proceed,
    /// The user that the program will have. The last message unless a step fails.
    User(ResolvedUser),
    /// Comes with a mount of /proc of the new PID namespace, for the containers that will join it.
    Proc,
    /// Comes with the master end of the container's terminal.
    Terminal,
    /// The step that failed. The child ends.
    Failed(Failure),
}

/// A close-on-exec pair: the parent's end and the child's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .step("socketpair")
}

/// Sends `message`, and `fd` with it.
pub(crate) fn send(channel: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = berth_shim::protocol::encode(message);
    // EPIPE means that the other side was killed, and then there is nobody to tell. The packet is
    // never too large, and a queue of a few packets never full.
    let _ = sendmsg(channel, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
}

/// Waits for the next message; `None` is end-of-file.
pub(crate) fn receive(channel: BorrowedFd<'_>) -> Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; MAX_PACKET];
    match receive_bytes(channel, &mut bytes)? {
        (0, _) => Ok(None),
        (length, fd) => Ok(Some((berth_shim::protocol::decode(&bytes[..length])?, fd))),
    }
}

/// Waits for a packet of any contents, and returns the descriptor that comes with it.
pub(crate) fn receive_fd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    receive_bytes(socket, &mut [0; MAX_PACKET]).map(|(_, fd)| fd)
}

fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length =
        recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .step("read from the starting process")?
            .bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((length, fd))
}
