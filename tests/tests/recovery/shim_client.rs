//! The daemon's end of `shim.sock`, played by a test: packets of its own making, and a proxy that
//! changes what a shim says.

use std::{
    fs::{self, File},
    io::{IoSlice, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{
        AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind,
        connect, listen, sendmsg, socket,
    },
};
use serde_json::Value;

/// The longest packet of the protocol, in bytes.
const MAX_PACKET: usize = 4096;

/// A connection to a shim. Each read and each write of it is a packet, although its type says
/// stream: the kernel knows better.
#[derive(Debug)]
pub(crate) struct ShimClient {
    socket: UnixStream,
}

impl ShimClient {
    /// Connects to the socket `name` in `directory`.
    pub(crate) fn connect(directory: &Path, name: &str) -> Self {
        let at = File::open(directory).unwrap();
        let socket = new_socket();
        connect(socket.as_raw_fd(), &address(&at, name)).unwrap();
        Self { socket: socket.into() }
    }

    pub(crate) fn send(&self, packet: &Value, fds: &[OwnedFd]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let bytes = packet.to_string();
        let parts = [IoSlice::new(bytes.as_bytes())];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
    }

    /// Waits for the next packet.
    pub(crate) fn receive(&self) -> Value {
        next(&self.socket).expect("a packet")
    }
}

fn new_socket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

/// By descriptor, since the path is longer than a socket address.
fn address(directory: &File, name: &str) -> UnixAddr {
    UnixAddr::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).as_str()).unwrap()
}

/// The next packet; `None` when the other end is gone.
fn next(mut socket: &UnixStream) -> Option<Value> {
    let mut bytes = [0; MAX_PACKET];
    let length = socket.read(&mut bytes).ok().filter(|length| *length > 0)?;
    Some(serde_json::from_slice(&bytes[..length]).unwrap())
}

/// A file in memory, as it comes with an exec.
pub(crate) fn memory_file(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("exec", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// Takes the place of `shim.sock` in `directory` for as long as the test runs, and changes each
/// packet of the shim. No descriptors pass through.
pub(crate) fn proxy(directory: &Path, change: impl Fn(&mut Value) + Clone + Send + 'static) {
    fs::rename(directory.join("shim.sock"), directory.join("real.sock")).unwrap();
    let at = File::open(directory).unwrap();
    let listener = new_socket();
    bind(listener.as_raw_fd(), &address(&at, "shim.sock")).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    let directory = directory.to_owned();
    thread::spawn(move || {
        for daemon in UnixListener::from(listener).incoming() {
            let daemon = daemon.unwrap();
            let shim = ShimClient::connect(&directory, "real.sock").socket;
            let (to_daemon, from_shim) = (daemon.try_clone().unwrap(), shim.try_clone().unwrap());
            thread::spawn(move || pass(&daemon, &shim, |_| ()));
            let change = change.clone();
            thread::spawn(move || pass(&from_shim, &to_daemon, change));
        }
    });
}

/// Passes packets on until one end is gone, and tells the other one.
fn pass(from: &UnixStream, mut to: &UnixStream, change: impl Fn(&mut Value)) {
    while let Some(mut packet) = next(from) {
        change(&mut packet);
        let _ = to.write(packet.to_string().as_bytes());
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
