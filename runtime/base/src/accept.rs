//! Accepting connections, so that what fails for one client does not end the listener.
//!
//! Without a free descriptor accept(2) fails, and the client stays in the queue: epoll(7) reports
//! the listener as ready again at once, and the loop would spin. One descriptor is kept for this
//! moment. It is closed to accept the client and to close its connection, so that it notices.

use std::{fs::File, io, time::Duration};

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long to wait for free memory or for a free descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener with its spare descriptor.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    spare: Option<File>,
}

/// The two kinds of sockets that berthd listens on.
pub trait Listener {
    type Connection: Send;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Listener for UnixListener {
    type Connection = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(client, _)| client)
    }
}

impl Listener for TcpListener {
    type Connection = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(client, _)| client)
    }
}

impl<L: Listener> Acceptor<L> {
    pub fn new(listener: L) -> Self {
        Self { listener, spare: spare() }
    }

    /// The next client.
    ///
    /// # Errors
    /// The listener itself cannot be used any more.
    pub async fn accept(&mut self) -> io::Result<L::Connection> {
        loop {
            let error = match self.listener.accept().await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE) => {
                    tracing::warn!("a client is refused: {error}");
                    self.refuse().await;
                }
                Some(Errno::ENOBUFS | Errno::ENOMEM) => tokio::time::sleep(PAUSE).await,
                // The client has gone, or the network that it came by: accept(2) passes on such
                // errors and asks to treat them like EAGAIN ("Error handling").
                Some(
                    Errno::ECONNABORTED
                    | Errno::EINTR
                    | Errno::EPERM
                    | Errno::EPROTO
                    | Errno::ENETDOWN
                    | Errno::ENETUNREACH
                    | Errno::EHOSTDOWN
                    | Errno::EHOSTUNREACH,
                ) => {}
                _ => return Err(error),
            }
        }
    }

    /// Accepts one client with the spare descriptor, and closes its connection.
    async fn refuse(&mut self) {
        drop(self.spare.take());
        // With a timeout, since the client may have given up meanwhile.
        let refused = tokio::time::timeout(PAUSE, self.listener.accept()).await;
        let is_refused = matches!(refused, Ok(Ok(_)));
        drop(refused);
        self.spare = spare();
        if !is_refused {
            // Another thread was faster to take the descriptor. Without the pause, this loop would
            // spin until one is free.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
