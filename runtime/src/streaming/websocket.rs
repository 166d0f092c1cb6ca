//! WebSocket in SPDY's place: the first byte of each message is the number of its stream.
//!
//! `v5.channel.k8s.io` can say that a stream has ended; `base64` variants have text for old browsers' sake. Forwarded ports come as SPDY
//! in binary messages (KEP 4006), or as two streams for each port.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use futures_util::{SinkExt, Stream, StreamExt, stream::SplitSink};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL},
};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    Session,
    channels::{Channels, Ending, Output, Wanted},
    connection::{Connection, Io},
    portforward,
    spdy::HEADER,
    switching, upgraded, words,
};
use crate::{machine::Machine, telemetry::Open};

const QUEUE: usize = 8;
/// Of one message; clients send what a person types, or 32 KiB of a file.
const MAX_MESSAGE: usize = 1 << 20;
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    base64: bool,
    ending: Ending,
    /// `[255, n]`: stream n has ended.
    closes: bool,
}

/// Newest first. Without any, as old clients have it, it is the last one.
const PROTOCOLS: [Protocol; 5] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, ending: Ending::Status, closes: true },
    Protocol { name: "v4.channel.k8s.io", base64: false, ending: Ending::Status, closes: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, ending: Ending::Status, closes: false },
    Protocol { name: "base64.channel.k8s.io", base64: true, ending: Ending::Text, closes: false },
    Protocol { name: "channel.k8s.io", base64: false, ending: Ending::Text, closes: false },
];

/// Those of before the tunnel.
const FORWARD_PROTOCOLS: [Protocol; 2] = [PROTOCOLS[1], PROTOCOLS[2]];

/// Numbers of streams.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    pub(super) const CLOSE: u8 = 255;
}

type Socket = WebSocketStream<Io>;

/// Writes on one stream.
pub(crate) struct Sender {
    sink: Arc<Mutex<SplitSink<Socket, Message>>>,
    channel: u8,
    base64: bool,
}

impl Sender {
    /// Sends what is in `buffer` behind its first `HEADER` bytes.
    pub(crate) async fn send(&self, buffer: &mut [u8]) -> io::Result<()> {
        let message = if self.base64 {
            let digit = char::from(b'0' + self.channel);
            Message::text(format!("{digit}{}", STANDARD.encode(&buffer[HEADER..])))
        } else {
            buffer[HEADER - 1] = self.channel;
            Message::binary(Bytes::copy_from_slice(&buffer[HEADER - 1..]))
        };
        self.sink.lock().await.send(message).await.map_err(io::Error::other)
    }

    /// The end of all streams is that of the connection.
    pub(crate) async fn finish(&self) {}
}

/// The answer to a request for WebSocket, and the session in a task of its own.
pub(super) fn answer(
    machine: Arc<Machine>,
    session: Session,
    counted: Open,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let refuse = |words: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    };
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return refuse("Sec-WebSocket-Key is missing\n");
    };
    let offered = words(request.headers(), &SEC_WEBSOCKET_PROTOCOL);
    let is_offered = |name: &str| offered.iter().any(|one| one == name);
    let on_upgrade = hyper::upgrade::on(&mut request);
    let name = match session.wanted() {
        None if is_offered(TUNNEL) => {
            tokio::spawn(async move {
                let _counted = counted;
                let Some((io, early)) = upgraded(on_upgrade).await else { return };
                let Session::PortForward { netns, .. } = session else { return };
                let tunnel = Tunnel { socket: open(io, &early).await, read: Bytes::new() };
                portforward::serve(Connection::new(Box::new(tunnel), Bytes::new()), netns).await;
            });
            Some(TUNNEL)
        }
        None => {
            let Some(protocol) = FORWARD_PROTOCOLS.into_iter().find(|protocol| is_offered(protocol.name)) else {
                return refuse("a port is forwarded by SPDY/3.1+portforward.k8s.io or v4.channel.k8s.io\n");
            };
            tokio::spawn(async move {
                let _counted = counted;
                let Some((io, early)) = upgraded(on_upgrade).await else { return };
                serve_ports(session, protocol, open(io, &early).await).await;
            });
            Some(protocol.name)
        }
        Some(wanted) => {
            let protocol = PROTOCOLS.into_iter().find(|protocol| is_offered(protocol.name));
            if protocol.is_none() && !offered.is_empty() {
                return refuse("no protocol of Sec-WebSocket-Protocol is known\n");
            }
            let [.., oldest] = PROTOCOLS;
            let spoken = protocol.unwrap_or(oldest);
            tokio::spawn(async move {
                let _counted = counted;
                let Some((io, early)) = upgraded(on_upgrade).await else { return };
                serve(&machine, session, wanted, spoken, open(io, &early).await).await;
            });
            protocol.map(|protocol| protocol.name)
        }
    };
    let mut response = switching("websocket");
    let accept = derive_accept_key(key.as_bytes());
    let headers = response.headers_mut();
    headers.extend(HeaderValue::try_from(accept).map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    headers.extend(name.map(|name| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name))));
    response
}

async fn open(io: Io, early: &Bytes) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(io, early.to_vec(), Role::Server, Some(config)).await
}

async fn serve(machine: &Machine, session: Session, wanted: Wanted, protocol: Protocol, socket: Socket) {
    let (sink, messages) = socket.split();
    let sink = Arc::new(Mutex::new(sink));
    let sender = |channel| Sender { sink: sink.clone(), channel, base64: protocol.base64 };
    let output = |is_wanted: bool, channel| is_wanted.then(|| Output::WebSocket(sender(channel)));
    let (stdin_sender, stdin) = mpsc::channel(QUEUE);
    let (resize_sender, resize) = mpsc::channel(QUEUE);
    let (left, gone) = watch::channel(false);
    let reader = tokio::spawn(async move {
        read(messages, protocol, stdin_sender, resize_sender).await;
        left.send_replace(true);
    });
    let channels = Channels {
        stdin: wanted.stdin.then_some(stdin),
        stdout: output(wanted.stdout, channel::STDOUT),
        stderr: output(wanted.stderr, channel::STDERR),
        resize: wanted.tty.then_some(resize),
        error: Output::WebSocket(sender(channel::ERROR)),
        ending: protocol.ending,
        gone,
    };
    // An empty message on the first stream tells the client that all is ready.
    let first = [(wanted.stdout, channel::STDOUT), (wanted.stderr, channel::STDERR), (true, channel::ERROR)];
    let first = first.into_iter().find(|(is_there, _)| *is_there).map_or(channel::ERROR, |(_, channel)| channel);
    let _ = sender(first).send(&mut [0; HEADER]).await;
    session.run(machine, channels).await;
    part(&sink, async { drop(reader.await) }).await;
}

/// Says goodbye. `heard`: the client has said so too, and read by then what was sent last.
async fn part(sink: &Mutex<SplitSink<Socket, Message>>, heard: impl Future<Output = ()>) {
    let goodbye = async {
        let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.lock().await.send(Message::Close(Some(end))).await;
        heard.await;
    };
    let _ = tokio::time::timeout(super::connection::PARTING, goodbye).await;
}

/// One connection to each port that was asked for: data is stream 2i, errors are stream 2i + 1, and each begins with the port.
async fn serve_ports(session: Session, protocol: Protocol, socket: Socket) {
    let Session::PortForward { netns, ports } = session else { return };
    let (sink, mut messages) = socket.split();
    let sink = Arc::new(Mutex::new(sink));
    let (mut inputs, mut forwards) = (Vec::new(), JoinSet::new());
    for (number, port) in (0_u8..127).zip(ports) {
        let (input, received) = mpsc::channel(QUEUE);
        inputs.push(input);
        let sender = |channel| Sender { sink: sink.clone(), channel, base64: protocol.base64 };
        let (data, error) = (sender(2 * number), sender(2 * number + 1));
        for stream in [&data, &error] {
            let _ = stream.send(&mut [&[0; HEADER][..], &port.to_le_bytes()].concat()).await;
        }
        let netns = netns.clone();
        forwards.spawn(async move {
            let (data, error) = (Output::WebSocket(data), Output::WebSocket(error));
            portforward::forward(netns.as_deref(), port, received, &data, &error).await;
        });
    }
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            let Some((number, bytes)) = content(message, protocol.base64) else { continue };
            if let Some(input) = inputs.get(usize::from(number / 2)).filter(|_| number % 2 == 0) {
                // Its connection may have ended.
                let _ = input.send(bytes).await;
            }
        }
    };
    let ending = async { while forwards.join_next().await.is_some() {} };
    tokio::pin!(reading);
    tokio::select! {
        () = &mut reading => {}
        () = ending => part(&sink, reading).await,
    }
}

/// Hands on what the client sends until it leaves.
async fn read(
    mut messages: impl Stream<Item = Result<Message, Error>> + Unpin,
    protocol: Protocol,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<Bytes>,
) {
    let (mut stdin, mut resize) = (Some(stdin), Some(resize));
    while let Some(Ok(message)) = messages.next().await {
        let Some((number, bytes)) = content(message, protocol.base64) else { continue };
        match number {
            channel::STDIN | channel::RESIZE => {
                let to = if number == channel::STDIN { &stdin } else { &resize };
                if let Some(to) = to.as_ref().filter(|_| !bytes.is_empty()) {
                    // Nobody may want it any more.
                    let _ = to.send(bytes).await;
                }
            }
            channel::CLOSE if protocol.closes => match bytes.first() {
                Some(&channel::STDIN) => stdin = None,
                Some(&channel::RESIZE) => resize = None,
                _ => {}
            },
            _ => {}
        }
    }
}

fn content(message: Message, base64: bool) -> Option<(u8, Bytes)> {
    match message {
        Message::Binary(mut bytes) if !base64 && !bytes.is_empty() => Some((bytes.get_u8(), bytes)),
        Message::Text(text) if base64 => {
            let (digit, rest) = text.as_bytes().split_first()?;
            Some((digit.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into()))
        }
        _ => None,
    }
}

/// A stream of bytes in binary messages.
struct Tunnel {
    socket: Socket,
    /// Of a message that was not read to its end.
    read: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.socket.poll_next_unpin(context)) {
                Some(Ok(Message::Binary(bytes))) => self.read = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.socket.poll_ready_unpin(context)).map_err(io::Error::other)?;
        let message = Message::binary(Bytes::copy_from_slice(bytes));
        self.socket.start_send_unpin(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(context).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_close_unpin(context).map_err(io::Error::other)
    }
}
