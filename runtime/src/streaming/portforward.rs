//! Ports of a pod, for a client of this machine: each connection is a pair of streams, data and error.

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
    channels::{Input, Output},
    connection::{Connection, Stream},
    spdy::HEADER,
};

/// For the second stream of a pair.
const PAIRING: Duration = Duration::from_secs(30);
/// For the client to have its say once the pod has had its.
const GRACE: Duration = Duration::from_secs(1);
const CHUNK: usize = 64 << 10;

/// A stream whose other half has not come yet.
struct Half {
    stream: Stream,
    is_data: bool,
    since: Instant,
}

/// Serves connections until the client is gone. `netns`: of the pod; `None` for the host's.
pub(crate) async fn serve(mut connection: Connection, netns: Option<PathBuf>) {
    let mut waiting: HashMap<String, Half> = HashMap::new();
    // Ends with this function, and what it holds.
    let mut forwards = JoinSet::new();
    loop {
        while forwards.try_join_next().is_some() {}
        let patience = waiting.values().map(|half| half.since + PAIRING).min();
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            () = until(patience) => {
                let late = waiting.extract_if(|_, half| half.since.elapsed() >= PAIRING);
                late.for_each(|(_, half)| drop(forwards.spawn(give_up(half))));
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let Some((request, is_data)) = kind(&stream) else {
            stream.output.reset().await;
            continue;
        };
        let (data, error) = match waiting.remove(&request) {
            Some(half) if half.is_data == is_data => {
                stream.output.reset().await;
                waiting.insert(request, half);
                continue;
            }
            Some(half) if is_data => (stream, half.stream),
            Some(half) => (half.stream, stream),
            None => {
                waiting.insert(request, Half { stream, is_data, since: Instant::now() });
                continue;
            }
        };
        let port = data.headers.get("port").and_then(|port| port.parse().ok()).unwrap_or(0);
        let netns = netns.clone();
        forwards.spawn(async move {
            let (output, told) = (data.output.clone(), error.output.clone());
            forward(netns.as_deref(), port, data.input, &Output::Spdy(data.output), &Output::Spdy(error.output)).await;
            output.forget();
            told.forget();
        });
    }
    connection.close().await;
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Says so where the client listens.
async fn give_up(half: Half) {
    let output = half.stream.output;
    if half.is_data {
        return output.reset().await;
    }
    let error = Output::Spdy(output.clone());
    let _ = error.send_text(&format!("no data stream came within {} s", PAIRING.as_secs())).await;
    error.finish().await;
    output.forget();
}

/// Which connection a stream belongs to, and whether it is the data of it; `None` for what is neither.
fn kind(stream: &Stream) -> Option<(String, bool)> {
    stream.headers.get("port")?.parse::<u16>().ok().filter(|port| *port > 0)?;
    let is_data = match stream.headers.get("streamtype")?.as_str() {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    // Clients of before number them: the error stream, then the data stream.
    let numbered = || if is_data { stream.id.wrapping_sub(2) } else { stream.id }.to_string();
    Some((stream.headers.get("requestid").cloned().unwrap_or_else(numbered), is_data))
}

/// Joins one connection to a port.
pub(crate) async fn forward(netns: Option<&Path>, port: u16, input: Input, data: &Output, error: &Output) {
    match connect(netns, port).await {
        Ok(stream) => copy(stream, input, data).await,
        Err(reason) => {
            let _ = error.send_text(&format!("connect to port {port} of the pod: {reason}")).await;
        }
    }
    data.finish().await;
    error.finish().await;
}

/// To localhost as the pod knows it, IPv4 first.
async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let [v4, v6] = sockets(netns.map(Path::to_owned)).await?;
    match v4?.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => Ok(stream),
        Err(refused) => match v6 {
            Ok(socket) => socket.connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| refused),
            Err(_) => Err(refused),
        },
    }
}

/// Sockets belong to the network namespace that they were made in: a thread enters it for that, and ends.
async fn sockets(netns: Option<PathBuf>) -> io::Result<[io::Result<TcpSocket>; 2]> {
    let make = || [TcpSocket::new_v4(), TcpSocket::new_v6()];
    let Some(path) = netns else { return Ok(make()) };
    let (sender, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let entered = File::open(&path)
            .and_then(|namespace| setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        // Nobody waits for it when the client is gone.
        let _ = sender.send(entered.map(|()| make()));
    })?;
    made.await.map_err(|_| io::Error::other("the thread for the pod's network ended"))?
}

async fn copy(stream: TcpStream, mut input: Input, data: &Output) {
    // Small packets are what people type.
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let to_pod = async {
        while let Some(bytes) = input.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The client has no more to say, and waits for the answer.
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let to_client = async {
        let mut buffer = vec![0; HEADER + CHUNK];
        loop {
            match read.read(&mut buffer[HEADER..]).await {
                Ok(length) if length > 0 => {
                    if data.send(&mut buffer[..HEADER + length]).await.is_err() {
                        return;
                    }
                }
                _ => return data.finish().await,
            }
        }
    };
    tokio::pin!(to_pod);
    tokio::select! {
        () = &mut to_pod => {}
        () = to_client => drop(tokio::time::timeout(GRACE, to_pod).await),
    }
}
