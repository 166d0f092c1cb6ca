//! A WebSocket connection as a set of numbered streams: the first byte of each message is the
//! number of its stream. In the `base64` variants, which browsers without binary messages needed,
//! it is a digit and the rest is text.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::sync::Mutex;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::super::{packet::Packet, upgrade::Io};

/// Bytes of one message. Clients send what a person types, or 32 KiB of a file.
const MAX_MESSAGE: usize = 1 << 20;
const READ_BUFFER: usize = 8 << 10;
/// How long the client has at the end to read what was sent last.
const CLOSING: Duration = Duration::from_secs(5);

pub(super) type Socket = WebSocketStream<Io>;

/// How bytes are put into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Binary,
    Base64,
}

/// The server's end of a connection after its handshake. `early` is what the client sent right
/// behind its request.
pub(super) async fn open(io: Io, early: &Bytes) -> Socket {
    // tungstenite's own limits are 16 and 64 MiB.
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(io, early.to_vec(), Role::Server, Some(config)).await
}

/// The two directions of a connection.
pub(super) fn split(socket: Socket, encoding: Encoding) -> (Writer, Reader) {
    let (sink, messages) = socket.split();
    (Writer { sink: Arc::new(Mutex::new(sink)), encoding }, Reader { messages, encoding })
}

/// The direction to the client, shared by all of its streams.
pub(super) struct Writer {
    sink: Arc<Mutex<SplitSink<Socket, Message>>>,
    encoding: Encoding,
}

/// The direction from the client.
pub(super) struct Reader {
    messages: SplitStream<Socket>,
    encoding: Encoding,
}

/// Writes to one stream.
pub(crate) struct Sender {
    sink: Arc<Mutex<SplitSink<Socket, Message>>>,
    encoding: Encoding,
    stream: u8,
}

impl Writer {
    /// The stream with this number.
    pub(super) fn stream(&self, stream: u8) -> Sender {
        Sender { sink: self.sink.clone(), encoding: self.encoding, stream }
    }

    /// Closes the connection, after the client has had a chance to read everything. `answered`
    /// ends when the client has closed its side too, and has read by then what was sent last.
    pub(super) async fn close(&self, answered: impl Future<Output = ()>) {
        let both = async {
            let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // A client that is gone needs no goodbye.
            let _ = self.sink.lock().await.send(Message::Close(Some(end))).await;
            answered.await;
        };
        let _ = tokio::time::timeout(CLOSING, both).await;
    }
}

impl Reader {
    /// The next message that belongs to a stream: its number and its bytes. `None` when the client
    /// has left or breaks the protocol.
    pub(super) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = self.messages.next().await?.ok()?;
            // Pings are answered by tungstenite; what is in the wrong encoding is ignored.
            if let Some(content) = content(message, self.encoding) {
                return Some(content);
            }
        }
    }
}

impl Sender {
    /// Sends a packet as one message, and waits until the client takes it.
    pub(crate) async fn send(&self, packet: &mut Packet) -> io::Result<()> {
        // tungstenite wants the bytes for its own, so this is the one copy that is made.
        let message = match self.encoding {
            Encoding::Binary => {
                Message::binary(Bytes::copy_from_slice(packet.framed([self.stream])))
            }
            Encoding::Base64 => {
                let digit = char::from(b'0' + self.stream);
                Message::text(format!("{digit}{}", STANDARD.encode(packet.payload())))
            }
        };
        // The lock is held until the message is with the kernel, which keeps messages whole.
        self.sink.lock().await.send(message).await.map_err(io::Error::other)
    }
}

fn content(message: Message, encoding: Encoding) -> Option<(u8, Bytes)> {
    match (message, encoding) {
        (Message::Binary(mut bytes), Encoding::Binary) if !bytes.is_empty() => {
            Some((bytes.get_u8(), bytes))
        }
        (Message::Text(text), Encoding::Base64) => {
            let (digit, rest) = text.as_bytes().split_first()?;
            Some((digit.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into()))
        }
        _ => None,
    }
}
