//! Netlink sockets for netfilter: requests that change something, questions about single objects,
//! and lists. nftables and connection tracking are both reached this way.

use std::{
    io,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};

type Packet = NetlinkMessage<NetfilterMessage>;

/// Size of struct nlmsghdr.
const HEADER: usize = 16;
/// Where `res_id` of struct nfgenmsg is, which follows struct nlmsghdr.
const RES_ID: std::ops::Range<usize> = 18..20;
/// Size of the buffer for one part of a list: 32 KiB is the most that the kernel fills
/// (netlink_dump()). The fewer the parts, the rarer a change between two of them.
const PART: usize = 32 << 10;
/// What fits into a socket's send buffer as it is by default.
const USUAL: usize = 64 << 10;
/// Questions in one message. The responses to all of them have to fit into the socket's receive
/// buffer.
const QUESTIONS: usize = 16;
/// For how long a list that changes while it is read is read again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The connection of this process while nobody uses it.
static IDLE: Mutex<Option<Connection>> = Mutex::new(None);

/// A connected socket. The kernel handles a request within send(2), so that responses are there
/// when it returns.
struct Connection(Socket);

impl Connection {
    /// The one that was given back, or a new one.
    fn open() -> Result<Self, i32> {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).take();
        idle.map_or_else(|| Self::connect().map_err(errno), Ok)
    }

    /// Keeps it for the next conversation. Only for one whose conversation is over, since whatever
    /// the kernel still has to say would be taken for the response to something else.
    fn give_back(self) {
        *IDLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        // The kernel chooses the socket's port id; its own is 0.
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends several messages at once, numbered from 1.
    fn send(&self, messages: Vec<(NetfilterMessage, u16)>) -> Result<(), i32> {
        let mut bytes = Vec::new();
        for (sequence, (message, flags)) in (1..).zip(messages) {
            let mut packet = NetlinkMessage::from(message);
            packet.header.flags = flags;
            packet.header.sequence_number = sequence;
            packet.finalize();
            let start = bytes.len();
            bytes.resize(start + packet.buffer_len(), 0);
            packet.serialize(&mut bytes[start..]);
        }
        if bytes.len() > USUAL {
            // As for a pod with a thousand ports. Without CAP_NET_ADMIN this fails, and then the
            // message does: EMSGSIZE.
            let _ = setsockopt(&self.0, sockopt::SndBufForce, &(2 * bytes.len()));
        }
        self.0.send(&bytes, 0).map(drop).map_err(errno)
    }

    /// One datagram, complete.
    fn receive(&self) -> Result<Vec<u8>, i32> {
        let mut bytes = Vec::with_capacity(PART);
        // With MSG_TRUNC recv(2) returns the length of the datagram even where it did not fit, so
        // that a list that was cut off is an error and not a shorter list.
        let length = self.0.recv(&mut bytes, nix::libc::MSG_TRUNC).map_err(errno)?;
        if length == bytes.len() { Ok(bytes) } else { Err(nix::libc::EMSGSIZE) }
    }

    fn packets(&self) -> Result<Vec<Packet>, i32> {
        split(&self.receive()?).map(parse).collect()
    }
}

fn parse(packet: &[u8]) -> Result<Packet, i32> {
    Packet::deserialize(packet).map_err(|_| nix::libc::EBADMSG)
}

/// The packets of a datagram. Each begins with struct nlmsghdr, and that with the packet's length;
/// packets are aligned to four bytes.
fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let packet = rest.get(..length.max(HEADER))?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(packet)
    })
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(nix::libc::EIO)
}

/// Sends requests that change something. The kernel reports errors, and the success of the request
/// that asks for an acknowledgement, which is the last one: so the first response decides.
///
/// # Errors
/// A Linux error number.
pub(crate) fn request(messages: Vec<(NetfilterMessage, u16)>) -> Result<(), i32> {
    let connection = Connection::open()?;
    // A thousand errors may overflow the receive buffer. The first one is there, so ENOBUFS for the
    // rest is turned off (netlink(7), NETLINK_NO_ENOBUFS).
    connection.0.set_no_enobufs(true).map_err(errno)?;
    connection.send(messages)?;
    match connection.packets()?.into_iter().next().map(|packet| packet.payload) {
        Some(NetlinkPayload::Error(error)) => {
            error.code.map_or(Ok(()), |code| Err(-code.get()))?;
            connection.give_back();
            Ok(())
        }
        _ => Err(nix::libc::EBADMSG),
    }
}

/// Leaves the connection to a child, which has nothing to do but to close it. To be called when
/// something was removed from nftables, and nothing else is to be asked.
///
/// What a transaction removes is out of force when it is answered, but the kernel frees it later,
/// after a grace period of RCU; and it lets nobody close a socket of nftables before that is done
/// (`nft_rcv_nl_event`). That takes 5 to 50 ms, for which a pod's end would wait.
pub(crate) fn close_later() {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Connection(socket)) = idle else { return };
    // Another descriptor of the same socket, so that this process' own can be closed at once.
    let Ok(copy) = socket.as_fd().try_clone_to_owned() else { return };
    let mut child = Command::new("/proc/self/exe");
    child.env_clear().env("CNI_COMMAND", "VERSION");
    child.stdin(copy).stdout(Stdio::null()).stderr(Stdio::null());
    // Without a child the socket is closed here, which only takes longer. Nobody waits for the
    // child: this process ends first, and leaves it to init.
    let _ = child.spawn();
}

/// Asks about single objects: for each question the kernel's messages, or the error number that it
/// answers with, such as ENOENT.
///
/// # Errors
/// A Linux error number that is about the connection and none of the questions.
pub(crate) fn ask(
    questions: Vec<NetfilterMessage>,
) -> Result<Vec<Result<Vec<NetfilterMessage>, i32>>, i32> {
    let connection = Connection::open()?;
    let mut responses = Vec::new();
    for some in questions.chunks(QUESTIONS) {
        let questions = some.iter().map(|question| (question.clone(), NLM_F_REQUEST | NLM_F_ACK));
        connection.send(questions.collect())?;
        let mut begun = Vec::new();
        let expected = responses.len() + some.len();
        while responses.len() < expected {
            for packet in connection.packets()? {
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => begun.push(message),
                    // An acknowledgement or an error ends what belongs to one question.
                    NetlinkPayload::Error(error) => {
                        let response = std::mem::take(&mut begun);
                        responses.push(error.code.map_or(Ok(response), |code| Err(-code.get())));
                    }
                    _ => return Err(nix::libc::EBADMSG),
                }
            }
        }
    }
    connection.give_back();
    Ok(responses)
}

/// A list of the kernel as it was at one moment: packets, of which `listed` reads one. The kernel
/// hands out a list in parts and continues by the number of entries that it has listed. When one of
/// those is removed in between, an entry that was there all the time is skipped; so a list that
/// changed is read again.
///
/// # Errors
/// A Linux error number; EINTR when the list changed during each attempt for ten seconds.
pub(crate) fn dump(request: &NetfilterMessage) -> Result<Vec<Vec<u8>>, i32> {
    let begun = Instant::now();
    loop {
        match dump_once(request.clone())? {
            Some(whole) => return Ok(whole),
            None if begun.elapsed() > PATIENCE => return Err(nix::libc::EINTR),
            None => {}
        }
    }
}

/// `None` when the list changed meanwhile.
fn dump_once(request: NetfilterMessage) -> Result<Option<Vec<Vec<u8>>>, i32> {
    let connection = Connection::open()?;
    connection.send(vec![(request, NLM_F_REQUEST | NLM_F_DUMP)])?;
    let mut found: Vec<Vec<u8>> = Vec::new();
    loop {
        for packet in split(&connection.receive()?) {
            // struct nlmsghdr: length, type at byte 4, flags at byte 6.
            let [kind, flags] = [4, 6].map(|at| u16::from_ne_bytes([packet[at], packet[at + 1]]));
            if flags & NLM_F_DUMP_INTR != 0 {
                return Ok(None);
            }
            if [NLMSG_DONE, NLMSG_ERROR].contains(&kind) {
                let errno = end(packet)?;
                connection.give_back();
                return match errno {
                    0 => Ok(Some(found)),
                    nix::libc::EINTR => Ok(None),
                    errno => Err(errno),
                };
            }
            // nftables does not set the flag for the elements of a set, but each part has the lower
            // 16 bits of the ruleset's generation in res_id (nfnl_msg_put()).
            if found.last().is_some_and(|last| last.get(RES_ID) != packet.get(RES_ID)) {
                return Ok(None);
            }
            found.push(packet.to_owned());
        }
    }
}

/// The error number with which a list ends; 0 for success.
fn end(packet: &[u8]) -> Result<i32, i32> {
    match parse(packet)?.payload {
        NetlinkPayload::Done(done) => Ok(-done.code),
        NetlinkPayload::Error(error) => {
            Ok(error.code.map_or(nix::libc::EBADMSG, |code| -code.get()))
        }
        _ => Err(nix::libc::EBADMSG),
    }
}

/// The message of a packet of a list.
pub(crate) fn listed(packet: &[u8]) -> Result<NetfilterMessage, i32> {
    match parse(packet)?.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        _ => Err(nix::libc::EBADMSG),
    }
}
