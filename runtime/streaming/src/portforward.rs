//! Ports of a pod: each connection of the client is a pair of streams, one for data and one for
//! errors, and becomes a TCP connection inside the pod's network namespace.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::Instant,
};

use super::{
    packet::Packet,
    spdy::connection::{Connection, Stream},
    streams::{Input, Output},
};

/// How long the first stream of a pair waits for the second.
const PAIRING: Duration = Duration::from_secs(30);
/// How long the client may go on sending once the pod has closed its side of a connection.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of one read from the pod.
const CHUNK: usize = 64 << 10;

/// A stream whose other half has not come yet.
struct Half {
    stream: Stream,
    is_data: bool,
    since: Instant,
}

/// Serves a client until it leaves. `netns` is the pod's; `None` stands for the host's.
pub(super) async fn serve(mut connection: Connection, netns: Option<PathBuf>) {
    let mut waiting: HashMap<String, Half> = HashMap::new();
    // Whatever still runs is aborted when this function returns.
    let mut forwards = JoinSet::new();
    loop {
        // A JoinSet keeps the results of tasks that have ended until somebody takes them.
        while forwards.try_join_next().is_some() {}
        let deadline = waiting.values().map(|half| half.since + PAIRING).min();
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            () = until(deadline) => {
                let late = waiting.extract_if(|_, half| half.since.elapsed() >= PAIRING);
                late.for_each(|(_, half)| drop(forwards.spawn(give_up(half))));
                continue;
            }
        };
        let Some(stream) = stream else { break };
        if let Some((data, error)) = pair(&mut waiting, stream).await {
            forwards.spawn(forward_pair(netns.clone(), data, error));
        }
    }
    connection.close().await;
}

/// The data and the error stream of a connection, once both are there. Until then the first one
/// waits; a stream that makes no pair is reset.
async fn pair(waiting: &mut HashMap<String, Half>, stream: Stream) -> Option<(Stream, Stream)> {
    let Some((request, is_data)) = kind(&stream) else {
        stream.output.reset().await;
        return None;
    };
    match waiting.remove(&request) {
        // The same half twice.
        Some(half) if half.is_data == is_data => {
            stream.output.reset().await;
            waiting.insert(request, half);
            None
        }
        Some(half) if is_data => Some((stream, half.stream)),
        Some(half) => Some((half.stream, stream)),
        None => {
            waiting.insert(request, Half { stream, is_data, since: Instant::now() });
            None
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Ends a stream whose other half did not come, with the reason where the client looks for errors.
async fn give_up(half: Half) {
    let sender = half.stream.output;
    if half.is_data {
        return sender.reset().await;
    }
    let error = Output::Spdy(sender.clone());
    let why = format!("no data stream came within {} s", PAIRING.as_secs());
    // It fails only for a client that is gone.
    let _ = error.send_text(&why).await;
    error.finish().await;
    sender.forget();
}

/// Which connection a stream belongs to, and whether it is the data stream of it; `None` for a
/// stream that is neither half of a connection.
fn kind(stream: &Stream) -> Option<(String, bool)> {
    stream.headers.get("port")?.parse::<u16>().ok().filter(|port| *port > 0)?;
    let is_data = match stream.headers.get("streamtype")?.as_str() {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    // Clients from before the `requestid` header open the error stream first and the data stream
    // right after it, so that the numbers differ by two.
    let numbered = || if is_data { stream.id.wrapping_sub(2) } else { stream.id }.to_string();
    Some((stream.headers.get("requestid").cloned().unwrap_or_else(numbered), is_data))
}

async fn forward_pair(netns: Option<PathBuf>, data: Stream, error: Stream) {
    let port = data.headers.get("port").and_then(|port| port.parse().ok()).unwrap_or(0);
    let data_sender = data.output.clone();
    let error_sender = error.output.clone();
    let data_output = Output::Spdy(data.output);
    let error_output = Output::Spdy(error.output);
    forward(netns.as_deref(), port, data.input, &data_output, &error_output).await;
    // The client may leave its side open; these streams must not count against its limit.
    data_sender.forget();
    error_sender.forget();
}

/// Makes one connection to a port, and copies until either side ends.
pub(super) async fn forward(
    netns: Option<&Path>,
    port: u16,
    input: Input,
    data: &Output,
    error: &Output,
) {
    match connect(netns, port).await {
        Ok(stream) => copy(stream, input, data).await,
        Err(reason) => {
            let _ = error.send_text(&format!("connect to port {port} of the pod: {reason}")).await;
        }
    }
    data.finish().await;
    error.finish().await;
}

/// Connects to localhost of the pod: by IPv4, and by IPv6 if nothing listens there.
async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let [v4, v6] = sockets(netns.map(Path::to_owned)).await?;
    let refused = match v4?.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => return Ok(stream),
        Err(refused) => refused,
    };
    // A pod without IPv6 has no socket for it; the error of IPv4 is the one that tells more.
    let Ok(v6) = v6 else { return Err(refused) };
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    v6.connect(address).await.map_err(|_| refused)
}

/// An IPv4 and an IPv6 socket of the pod.
///
/// A socket belongs to the network namespace of the thread that makes it (network_namespaces(7)),
/// so a thread enters the namespace for that and ends: no other task ever runs in it.
async fn sockets(netns: Option<PathBuf>) -> io::Result<[io::Result<TcpSocket>; 2]> {
    let Some(path) = netns else { return Ok(new_sockets()) };
    let (sender, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let entered = File::open(&path).and_then(|namespace| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        });
        // Nobody receives it if the client has left meanwhile.
        let _ = sender.send(entered.map(|()| new_sockets()));
    })?;
    made.await.map_err(|_| io::Error::other("the thread in the pod's network namespace ended"))?
}

fn new_sockets() -> [io::Result<TcpSocket>; 2] {
    [TcpSocket::new_v4(), TcpSocket::new_v6()]
}

async fn copy(stream: TcpStream, mut input: Input, data: &Output) {
    // What a person types comes in small packets, which Nagle's algorithm would hold back.
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let to_pod = async {
        while let Some(bytes) = input.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The client has no more to send and waits for the answer: the pod reads the end of the
        // stream, and the other direction goes on.
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let to_client = async {
        let mut packet = Packet::with_room(CHUNK);
        loop {
            match read.read(packet.room()).await {
                Ok(length) if length > 0 => {
                    if data.send(packet.filled(length)).await.is_err() {
                        return;
                    }
                }
                // An error ends the stream as an end does: SPDY has no other way to tell it.
                _ => return data.finish().await,
            }
        }
    };
    tokio::pin!(to_pod);
    tokio::select! {
        () = &mut to_pod => {}
        () = to_client => drop(tokio::time::timeout(LINGER, to_pod).await),
    }
}
