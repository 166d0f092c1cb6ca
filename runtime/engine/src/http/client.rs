//! A client's connection, once it is no longer HTTP.

use std::{
    future, io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, unix::AsyncFd},
    net::{UnixStream, unix::OwnedReadHalf},
};

/// How long the input of a client is read on that has got all output.
const LINGER: Duration = Duration::from_secs(5);

/// The two directions of a client's connection, once they are no longer HTTP.
pub(crate) struct Client {
    /// What the client sends. Its end is a half-close: the client still reads.
    pub input: Box<dyn AsyncRead + Send + Unpin>,
    pub output: Box<dyn AsyncWrite + Send + Unpin>,
    pub presence: Presence,
}

impl Client {
    /// Tells the client that there is no more output. What it still sends is read for a while: a
    /// connection that is closed over unread bytes is reset, and takes output with it that the
    /// client has not read (unix(7)).
    pub(crate) async fn close(mut self) {
        if self.output.shutdown().await.is_ok() {
            let mut sink = tokio::io::sink();
            let rest = tokio::io::copy(&mut self.input, &mut sink);
            let _ = tokio::time::timeout(LINGER, rest).await;
        }
    }
}

/// Whether a client is there, which one that has nothing to send does not show otherwise.
#[derive(Debug)]
pub(crate) struct Presence(Option<AsyncFd<OwnedFd>>);

impl Presence {
    /// Where the end of the client's input tells.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    pub(super) fn of(stream: &UnixStream) -> Self {
        Self::of_socket(stream)
    }

    fn of_socket(socket: impl AsFd) -> Self {
        let watched = socket.as_fd().try_clone_to_owned().and_then(|fd| {
            // Without the interest in input, a half-close does not wake it.
            #[expect(deprecated, reason = "the descriptor is owned, and so stays open")]
            AsyncFd::with_interest(fd, Interest::PRIORITY)
        });
        Self(watched.ok())
    }

    /// Ends when the client has closed its connection altogether.
    pub(crate) async fn gone(&self) {
        if let Some(connection) = &self.0 {
            let _ = connection.ready(Interest::PRIORITY).await;
        } else {
            future::pending::<()>().await;
        }
    }
}

/// The connection of a request, while it is HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<OwnedFd>);

impl Connection {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(stream.as_fd().try_clone_to_owned()?)))
    }

    /// Whether its client is there, for work that ends with it.
    pub(crate) fn presence(&self) -> Presence {
        Presence::of_socket(&*self.0)
    }
}

/// What a client has sent behind its request before it got the answer, and the rest.
pub(super) struct Rest {
    pub first: Bytes,
    pub then: OwnedReadHalf,
}

impl AsyncRead for Rest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.then).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}
