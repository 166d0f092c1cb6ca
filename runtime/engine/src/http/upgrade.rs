//! Connections that stop being HTTP: attach and exec (`Upgrade: tcp`).

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderValue, Request, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE},
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use nix::{getsockopt_impl, libc, sockopt_impl, sys::socket::GetSockOpt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, Interest},
    net::UnixStream,
};

use super::{
    body::{self, Answer},
    client::{Client, Presence, Rest},
    version::Version,
    websocket,
};

/// How much output waits for a client that reads it as the body of an answer, in bytes.
const WAITING: usize = 64 << 10;

/// How long a session waits for its client to read the head of the answer.
const HEAD: Duration = Duration::from_secs(1);

/// `SK_MEMINFO_WMEM_ALLOC` of linux/sock_diag.h.
const UNREAD: usize = 2;
/// `SK_MEMINFO_VARS`.
const COUNTERS: usize = 9;

sockopt_impl!(
    /// What the kernel has allocated for a socket, in bytes, by use.
    Memory,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; COUNTERS]
);

/// Waits until the other end has read all that was sent, or is gone.
///
/// # Errors
/// The kernel does not say.
async fn is_read(stream: &UnixStream) -> io::Result<()> {
    // What is read wakes those who want to write.
    let look = || match Memory.get(&stream)?[UNREAD] {
        // The kernel takes off the last byte of a message after it has woken them (`sock_wfree`).
        0 | 1 => Ok(()),
        _ => Err(io::ErrorKind::WouldBlock.into()),
    };
    stream.async_io(Interest::WRITABLE, look).await
}

/// How output is framed, which the answer's content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A terminal's bytes as they are.
    Raw,
    /// Each chunk behind a header with its stream and length.
    Multiplexed,
}

impl Framing {
    pub(crate) fn of(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    /// Clients before 1.42 know one word for both.
    pub(crate) fn content_type(self, version: Version) -> &'static str {
        match self {
            Self::Multiplexed if version >= Version(42) => {
                "application/vnd.docker.multiplexed-stream"
            }
            Self::Raw | Self::Multiplexed => RAW,
        }
    }
}

const RAW: &str = "application/vnd.docker.raw-stream";

/// The connection that a request asks for. Its session begins when the answer is on its way.
pub(crate) enum Pending {
    Upgrade(OnUpgrade),
    WebSocket(OnUpgrade, Version),
    /// Of clients that do not ask for an upgrade: bodies of request and answer are the connection.
    Bodies(Client),
}

impl Pending {
    /// Waits for the connection. `None` if the client went away before.
    ///
    /// docker-py reads the head of an answer through a buffer that it then drops: output that comes
    /// before the client has read the head would be lost in it.
    pub(crate) async fn client(self) -> Option<Client> {
        let upgraded = match self {
            Self::Bodies(client) => return Some(client),
            Self::Upgrade(upgrade) => upgrade.await.ok()?,
            Self::WebSocket(upgrade, version) => {
                return Some(websocket::client(upgrade.await.ok()?, version).await);
            }
        };
        let parts = upgraded.downcast::<TokioIo<UnixStream>>().ok()?;
        let stream = parts.io.into_inner();
        let _ = tokio::time::timeout(HEAD, is_read(&stream)).await;
        let presence = Presence::of(&stream);
        let (then, output) = stream.into_split();
        let input = Box::new(Rest { first: parts.read_buf, then });
        Some(Client { input, output: Box::new(output), presence })
    }
}

/// Takes the connection of a request for a session, and makes the answer. The body of a request
/// that asks for an upgrade has been read before; of others it is what the client sends.
pub(crate) fn take(
    parts: Parts,
    body: Option<Incoming>,
    framing: Framing,
    version: Version,
) -> (Answer, Pending) {
    if is_wanted(&parts) {
        let mut request = Request::from_parts(parts, ());
        return (switching(framing, version), Pending::Upgrade(hyper::upgrade::on(&mut request)));
    }
    let input: Box<dyn AsyncRead + Send + Unpin> = match body {
        Some(body) => Box::new(reader(body)),
        None => Box::new(tokio::io::empty()),
    };
    let (output, read) = tokio::io::duplex(WAITING);
    let answer = body::streaming(RAW, chunks(read));
    (
        answer,
        Pending::Bodies(Client { input, output: Box::new(output), presence: Presence::unknown() }),
    )
}

/// Whether the client asks for the connection itself.
pub(crate) fn is_wanted(parts: &Parts) -> bool {
    parts.headers.contains_key(UPGRADE)
}

/// Whether a request has a body of a length that is known: it is JSON, such as dockerode sends with
/// an attach, and no input.
pub(crate) fn has_document(parts: &Parts) -> bool {
    parts.headers.contains_key(CONTENT_LENGTH)
}

/// The answer after which the connection is the session's.
fn switching(framing: Framing, version: Version) -> Answer {
    let mut answer = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(framing.content_type(version)));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    answer
}

/// The body of a request as a stream of bytes.
fn reader(mut body: Incoming) -> DuplexStream {
    let (mut write, read) = tokio::io::duplex(WAITING);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(bytes) = frame.into_data()
                && write.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
    });
    read
}

/// What is written to the other end, as the body of an answer.
fn chunks(read: DuplexStream) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::unfold(read, |mut read| async {
        let mut buffer = bytes::BytesMut::with_capacity(WAITING);
        match read.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), read)),
            Err(error) => Some((Err(error), read)),
        }
    })
}
