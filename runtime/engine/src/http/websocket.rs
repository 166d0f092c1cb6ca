//! WebSocket connections (RFC 6455) as sessions: what a browser sends in messages is input, and
//! each chunk of output is one message.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{
    HeaderValue, Request, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
    request::Parts,
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    body::{self, Answer},
    client::{Client, Presence},
    error::{Failure, Result},
    version::Version,
};

/// Bytes of one message. Clients send what a person types.
const MAX_MESSAGE: usize = 1 << 20;
/// How much waits for the other side, in bytes.
const WAITING: usize = 64 << 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Takes the connection of a request for a session, and makes the answer.
///
/// # Errors
/// 400 if the request asks for no WebSocket.
pub(crate) fn take(parts: Parts) -> Result<(Answer, OnUpgrade)> {
    let key = parts.headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Failure::bad_request("not websocket protocol"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| Failure::bad_request("bad Sec-WebSocket-Key"))?;
    let mut answer = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let mut request = Request::from_parts(parts, ());
    Ok((answer, hyper::upgrade::on(&mut request)))
}

/// The connection as a stream of bytes in each direction.
pub(super) async fn client(upgraded: Upgraded, version: Version) -> Client {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let io = TokioIo::new(upgraded);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (input, typed) = tokio::io::duplex(WAITING);
    let (output, shown) = tokio::io::duplex(WAITING);
    // Older clients expect text.
    tokio::spawn(copy(socket, typed, shown, version >= Version(28)));
    Client { input: Box::new(input), output: Box::new(output), presence: Presence::unknown() }
}

/// Copies until the session or the client is over. The client's end is the end of its input.
async fn copy(
    mut socket: Socket,
    mut typed: DuplexStream,
    mut shown: DuplexStream,
    is_binary: bool,
) {
    loop {
        let mut buffer = BytesMut::with_capacity(WAITING);
        tokio::select! {
            message = socket.next() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => Bytes::from(text),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    // Pings are answered by tungstenite.
                    Some(Ok(_)) => continue,
                };
                if typed.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            length = shown.read_buf(&mut buffer) => {
                if !matches!(length, Ok(1..)) {
                    let _ = socket.close(None).await;
                    return;
                }
                let message = match is_binary {
                    true => Message::binary(buffer.freeze()),
                    false => Message::text(String::from_utf8_lossy(&buffer).into_owned()),
                };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}
