//! The server of one container: a datagram socket and a listener in its namespace, with bounds for
//! whatever the container sends.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use crate::{
    namespace::Namespaces,
    redirect::{self, Ports},
    table::{From, Resolver, Table},
    wire::{self, Code, Data},
};

/// What /etc/resolv.conf of a container names. Programs ask at port 53, which `redirect` leads to the
/// ports that the kernel has chosen.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Questions of one container that wait for a resolver; more are answered with a failure at once.
const FORWARDS: usize = 128;
const CONNECTIONS: usize = 16;
/// For one resolver; a client's own patience is 5 s for the first try.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);
/// The largest datagram that an EDNS client is told to expect.
const MESSAGE: usize = 4096;

/// What all servers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) namespaces: Namespaces,
    pub(crate) table: RefCell<Table>,
}

/// A container's server: it ends, and its sockets with it, when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    tasks: [AbortHandle; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Container {
    id: String,
    namespace: File,
    shared: Rc<Shared>,
    turn: Cell<usize>,
    forwards: Arc<Semaphore>,
}

impl Server {
    /// Listens in a container's namespace from the moment that this returns.
    pub(crate) fn start(shared: Rc<Shared>, id: &str, namespace: File) -> io::Result<Self> {
        let (datagrams, listener) = shared.namespaces.within(&namespace, || {
            let datagrams = StdUdp::bind((ADDRESS, 0))?;
            datagrams.set_nonblocking(true)?;
            let listener = StdListener::bind((ADDRESS, 0))?;
            listener.set_nonblocking(true)?;
            let ports =
                Ports { udp: datagrams.local_addr()?.port(), tcp: listener.local_addr()?.port() };
            redirect::set(ADDRESS, ports)?;
            Ok((datagrams, listener))
        })?;
        let datagrams = UdpSocket::from_std(datagrams)?;
        let listener = TcpListener::from_std(listener)?;
        let container = Rc::new(Container {
            id: id.to_owned(),
            namespace,
            shared,
            turn: Cell::new(0),
            forwards: Arc::new(Semaphore::new(FORWARDS)),
        });
        let tasks = [
            spawn_local(container.clone().answer_datagrams(Rc::new(datagrams))).abort_handle(),
            spawn_local(container.accept(listener)).abort_handle(),
        ];
        Ok(Self { tasks })
    }
}

impl Container {
    async fn answer_datagrams(self: Rc<Self>, socket: Rc<UdpSocket>) {
        let mut buffer = vec![0; MESSAGE];
        loop {
            // An error here is one of an earlier answer, whose asker has gone.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let query = &buffer[..length];
            if let Some(answer) = self.answer_now(query, wire::DATAGRAM) {
                if !answer.is_empty() {
                    _ = socket.try_send_to(&answer, peer);
                }
                continue;
            }
            let Ok(permit) = self.forwards.clone().try_acquire_owned() else {
                _ = socket.try_send_to(&wire::refusal(query, Code::ServerFailure), peer);
                continue;
            };
            let (container, socket, query) = (self.clone(), socket.clone(), query.to_vec());
            spawn_local(async move {
                let answer = container.forward(&query, false).await;
                _ = socket.send_to(&answer, peer).await;
                drop(permit);
            });
        }
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, it may be: others get theirs back first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let container = self.clone();
            spawn_local(async move {
                _ = container.answer_stream(stream).await;
                drop(permit);
            });
        }
    }

    async fn answer_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, read_message(&mut stream)).await??;
            let answer = match self.answer_now(&query, usize::from(u16::MAX)) {
                Some(answer) if answer.is_empty() => return Ok(()),
                Some(answer) => answer,
                None => match self.forwards.try_acquire() {
                    Ok(_permit) => self.forward(&query, true).await,
                    Err(_) => wire::refusal(&query, Code::ServerFailure),
                },
            };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }

    /// The answer that needs nobody else, empty for what gets none; `None` if resolvers are asked.
    fn answer_now(&self, query: &[u8], room: usize) -> Option<Vec<u8>> {
        let question = match wire::question(query) {
            Ok(question) => question,
            Err(Some(code)) => return Some(wire::refusal(query, code)),
            Err(None) => return Some(Vec::new()),
        };
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let table = self.shared.table.borrow();
        let data: Vec<Data> = table.look_up(&self.id, &question.name, question.kind, turn)?;
        Some(wire::answer(query, &question, &data, room))
    }

    /// Asks one resolver after the other.
    async fn forward(&self, query: &[u8], stream: bool) -> Vec<u8> {
        let resolvers = {
            let table = self.shared.table.borrow();
            table.askers.get(&self.id).map(|asker| asker.resolvers.clone()).unwrap_or_default()
        };
        for resolver in &resolvers {
            let asked = async {
                match stream {
                    true => self.ask_by_stream(resolver, query).await,
                    false => self.ask_by_datagram(resolver, query).await,
                }
            };
            if let Ok(Ok(answer)) = timeout(RESOLVER_TIMEOUT, asked).await {
                return answer;
            }
        }
        wire::refusal(query, Code::ServerFailure)
    }

    async fn ask_by_datagram(&self, resolver: &Resolver, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.from(resolver.from, || {
            let any = if resolver.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = StdUdp::bind(any)?;
            socket.set_nonblocking(true)?;
            socket.connect(SocketAddr::new(resolver.address, 53))?;
            Ok(socket)
        })?;
        let socket = UdpSocket::from_std(socket)?;
        socket.send(query).await?;
        let mut buffer = vec![0; MESSAGE];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if wire::answers(&buffer[..length], query) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn ask_by_stream(&self, resolver: &Resolver, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.from(resolver.from, || match resolver.address.is_ipv4() {
            true => tokio::net::TcpSocket::new_v4(),
            false => tokio::net::TcpSocket::new_v6(),
        })?;
        let mut stream = socket.connect(SocketAddr::new(resolver.address, 53)).await?;
        write_message(&mut stream, query).await?;
        let answer = read_message(&mut stream).await?;
        match wire::answers(&answer, query) {
            true => Ok(answer),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn from<T>(&self, from: From, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match from {
            From::Host => make(),
            From::Container => self.shared.namespaces.within(&self.namespace, make),
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).await
}
