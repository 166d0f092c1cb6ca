//! WebSocket sessions: which version of the protocol both sides know, and what its streams are.
//!
//! Exec and attach have numbered streams. A port is forwarded as SPDY inside of binary messages, or
//! by older clients as two numbered streams for each port.

use berth_base::observe::Open;
use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL},
};
use http_body_util::Full;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    super::{
        packet::Packet,
        portforward,
        session::{PortForward, Process, Session},
        spdy::connection::Connection,
        streams::{Output, StatusFormat, Streams},
        upgrade::{Io, refuse, switching, upgraded, words},
    },
    socket::{self, Encoding, Reader},
    tunnel::Tunnel,
};

/// Messages of one stream that wait to be taken; then nothing more is read from the client.
const QUEUE: usize = 8;
/// SPDY in binary messages (KEP 4006).
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Each port has two streams, and their numbers are one byte.
const MAX_PORTS: u8 = 127;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    encoding: Encoding,
    status_format: StatusFormat,
    /// A message `[255, n]` says that stream n has ended.
    closes: bool,
}

const V5: Protocol = Protocol {
    name: "v5.channel.k8s.io",
    encoding: Encoding::Binary,
    status_format: StatusFormat::Json,
    closes: true,
};
const V4: Protocol = Protocol { name: "v4.channel.k8s.io", closes: false, ..V5 };
const V4_BASE64: Protocol =
    Protocol { name: "v4.base64.channel.k8s.io", encoding: Encoding::Base64, ..V4 };
const V1_BASE64: Protocol =
    Protocol { name: "base64.channel.k8s.io", status_format: StatusFormat::Text, ..V4_BASE64 };
const V1: Protocol = Protocol { name: "channel.k8s.io", encoding: Encoding::Binary, ..V1_BASE64 };

/// Newest first, because that is which one is taken.
const PROTOCOLS: [Protocol; 5] = [V5, V4, V4_BASE64, V1_BASE64, V1];
/// A client that names no protocol is an old one.
const UNNAMED: Protocol = V1;
/// For clients that do not know the tunnel.
const FORWARD_PROTOCOLS: [Protocol; 2] = [V4, V4_BASE64];

/// The numbers of the streams of exec and attach.
mod stream {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    pub(super) const CLOSE: u8 = 255;
}

/// The response to an upgrade request, and the session in a task of its own.
pub(crate) fn respond(
    session: Session,
    counted: Open,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    // The response has to prove that the request was understood as WebSocket (RFC 6455, 4.2.2).
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let offered = words(request.headers(), &SEC_WEBSOCKET_PROTOCOL);
    let on_upgrade = hyper::upgrade::on(&mut request);
    let begun = match session {
        Session::Process(process) => begin_process(process, counted, &offered, on_upgrade),
        Session::PortForward(forward) => begin_forward(forward, counted, &offered, on_upgrade),
    };
    let name = match begun {
        Ok(name) => name,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    let mut response = switching("websocket");
    let headers = response.headers_mut();
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    headers.extend(accept.map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    headers.extend(name.map(|name| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name))));
    response
}

/// Begins an exec or attach. The name of the protocol, or why there is none.
fn begin_process(
    process: Process,
    counted: Open,
    offered: &[String],
    on_upgrade: OnUpgrade,
) -> Result<Option<&'static str>, &'static str> {
    let protocol = choose(PROTOCOLS, offered);
    // A client that offers only protocols from the future would misread the one of old clients.
    if protocol.is_none() && !offered.is_empty() {
        return Err("no protocol of Sec-WebSocket-Protocol is known");
    }
    tokio::spawn(async move {
        let _counted = counted;
        let Some((io, early)) = upgraded(on_upgrade).await else { return };
        serve_process(process, protocol.unwrap_or(UNNAMED), io, early).await;
    });
    Ok(protocol.map(|protocol| protocol.name))
}

/// Begins a port-forward. The name of the protocol, or why there is none.
fn begin_forward(
    forward: PortForward,
    counted: Open,
    offered: &[String],
    on_upgrade: OnUpgrade,
) -> Result<Option<&'static str>, &'static str> {
    if offered.iter().any(|one| one == TUNNEL) {
        tokio::spawn(async move {
            let _counted = counted;
            let Some((io, early)) = upgraded(on_upgrade).await else { return };
            let tunnel = Box::new(Tunnel::new(socket::open(io, &early).await));
            portforward::serve(Connection::new(tunnel, Bytes::new()), forward.netns).await;
        });
        return Ok(Some(TUNNEL));
    }
    let Some(protocol) = choose(FORWARD_PROTOCOLS, offered) else {
        return Err("a port is forwarded by SPDY/3.1+portforward.k8s.io or v4.channel.k8s.io");
    };
    tokio::spawn(async move {
        let _counted = counted;
        let Some((io, early)) = upgraded(on_upgrade).await else { return };
        serve_ports(forward, protocol, io, early).await;
    });
    Ok(Some(protocol.name))
}

fn choose<const N: usize>(known: [Protocol; N], offered: &[String]) -> Option<Protocol> {
    known.into_iter().find(|protocol| offered.iter().any(|name| name == protocol.name))
}

async fn serve_process(process: Process, protocol: Protocol, io: Io, early: Bytes) {
    let socket = socket::open(io, &early).await;
    let (writer, reader) = socket::split(socket, protocol.encoding);
    // Both even if the client did not ask for them: what it sends on such a stream is dropped with
    // the receiver.
    let (stdin_sender, stdin) = mpsc::channel(QUEUE);
    let (resize_sender, resize) = mpsc::channel(QUEUE);
    let (left, gone) = watch::channel(false);
    let reading = tokio::spawn(async move {
        read(reader, protocol.closes, stdin_sender, resize_sender).await;
        left.send_replace(true);
    });
    let options = process.options;
    // The streams to the client, in the order of their numbers.
    let mut numbers = Vec::new();
    numbers.extend(options.stdout.then_some(stream::STDOUT));
    numbers.extend(options.stderr.then_some(stream::STDERR));
    numbers.push(stream::ERROR);
    // An empty message on the first of them tells the client that everything is ready.
    let _ = writer.stream(numbers[0]).send(&mut Packet::from(&b""[..])).await;
    let output = |number| Output::WebSocket(writer.stream(number));
    let streams = Streams {
        stdin: options.stdin.then_some(stdin),
        stdout: options.stdout.then(|| output(stream::STDOUT)),
        stderr: options.stderr.then(|| output(stream::STDERR)),
        resize: options.tty.then_some(resize),
        error: output(stream::ERROR),
        status_format: protocol.status_format,
        gone,
    };
    process.run(streams).await;
    // The reader ends when the client has answered the close.
    writer.close(async { drop(reading.await) }).await;
}

/// Hands on what the client sends until it leaves.
async fn read(
    mut reader: Reader,
    closes: bool,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<Bytes>,
) {
    let mut stdin = Some(stdin);
    let mut resize = Some(resize);
    while let Some((number, bytes)) = reader.next().await {
        let to = match number {
            stream::STDIN => &stdin,
            stream::RESIZE => &resize,
            stream::CLOSE if closes => {
                match bytes.first() {
                    Some(&stream::STDIN) => stdin = None,
                    Some(&stream::RESIZE) => resize = None,
                    _ => {}
                }
                continue;
            }
            _ => continue,
        };
        if let Some(to) = to.as_ref().filter(|_| !bytes.is_empty()) {
            // It fails when the receiver of the stream was dropped, and the bytes are dropped too.
            let _ = to.send(bytes).await;
        }
    }
}

/// Makes one connection to each port of the request. Port i has the data stream 2i and the error
/// stream 2i + 1, and both begin with the number of the port.
async fn serve_ports(forward: PortForward, protocol: Protocol, io: Io, early: Bytes) {
    let PortForward { netns, ports } = forward;
    let socket = socket::open(io, &early).await;
    let (writer, mut reader) = socket::split(socket, protocol.encoding);
    let mut inputs = Vec::new();
    // Aborted when this function returns, because the client left.
    let mut forwards = JoinSet::new();
    for (index, port) in (0..MAX_PORTS).zip(ports) {
        let (input, received) = mpsc::channel(QUEUE);
        inputs.push(input);
        let data = writer.stream(2 * index);
        let error = writer.stream(2 * index + 1);
        for stream in [&data, &error] {
            // A client that is gone is noticed by the reader.
            let _ = stream.send(&mut Packet::from(&port.to_le_bytes()[..])).await;
        }
        let netns = netns.clone();
        forwards.spawn(async move {
            let data = Output::WebSocket(data);
            let error = Output::WebSocket(error);
            portforward::forward(netns.as_deref(), port, received, &data, &error).await;
        });
    }
    let reading = async {
        while let Some((number, bytes)) = reader.next().await {
            let input = inputs.get(usize::from(number / 2));
            // Clients have nothing to send on error streams.
            if let Some(input) = input.filter(|_| number.is_multiple_of(2)) {
                // Its connection may have ended.
                let _ = input.send(bytes).await;
            }
        }
    };
    let ending = async { while forwards.join_next().await.is_some() {} };
    tokio::pin!(reading);
    // Either the client leaves, or all connections have ended; then the reader goes on until the
    // client has answered the close.
    tokio::select! {
        () = &mut reading => {}
        () = ending => writer.close(reading).await,
    }
}
