//! A SPDY connection as a set of streams. One task reads for all of them; writers take a lock.
//!
//! Without flow control in the protocol, the only way to slow a client down is not to read from it:
//! once the queue of one stream is full, the whole connection waits until that is drained.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    super::{packet::Packet, upgrade::Io},
    frame::{self, Decoder, Encoder, Frame, Headers, ResetStatus, Violation},
};

/// A session is over when nothing was sent in either direction for so long, as in the kubelet
/// (`streamingConnectionIdleTimeout`).
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// Streams at one time. Each connection to a forwarded port has two.
const MAX_STREAMS: usize = 1024;
/// Reads of one stream that wait to be taken.
const QUEUE: usize = 8;
/// Bytes of one read.
const READ: usize = 32 << 10;
/// How long the client has at the end to read what was sent last.
const CLOSING: Duration = Duration::from_secs(5);

/// The connection; dropping it ends the task that reads.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    opened: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
}

/// A stream that the client opened and this side has accepted.
pub(crate) struct Stream {
    pub headers: Headers,
    pub id: u32,
    /// Ends when the client has no more to send, or is gone.
    pub input: mpsc::Receiver<Bytes>,
    pub output: Sender,
}

/// Writes to one stream.
#[derive(Clone)]
pub(crate) struct Sender {
    id: u32,
    shared: Arc<Shared>,
}

struct Shared {
    /// The encoder is in the same lock, because blocks of headers must be sent in the order in
    /// which they were compressed. It is held while the client takes the bytes.
    writer: tokio::sync::Mutex<(WriteHalf<Io>, Encoder)>,
    /// The streams on which the client may still send.
    inboxes: Mutex<HashMap<u32, mpsc::Sender<Bytes>>>,
    gone: watch::Sender<bool>,
    /// When something was sent last, in either direction.
    active: Mutex<Instant>,
}

impl Connection {
    /// `early` is what the client sent right behind its request.
    pub(crate) fn new(io: Io, early: Bytes) -> Self {
        let (read, write) = tokio::io::split(io);
        let shared = Arc::new(Shared {
            writer: tokio::sync::Mutex::new((write, Encoder::default())),
            inboxes: Mutex::default(),
            gone: watch::Sender::new(false),
            active: Mutex::new(Instant::now()),
        });
        let (sender, opened) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(shared.clone().read(read, early, sender));
        Self { shared, opened, reader }
    }

    /// The next stream; `None` when the client is gone.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }

    /// Refuses whatever else the client opens.
    pub(crate) async fn accept_no_more(&mut self) {
        self.opened.close();
        // Those that came before the queue was closed have been accepted already.
        while let Some(stream) = self.opened.recv().await {
            stream.output.reset().await;
        }
    }

    /// Becomes true when the client is gone.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.shared.gone.subscribe()
    }

    /// Ends the connection, after the client has had a chance to read everything.
    pub(crate) async fn close(mut self) {
        self.opened.close();
        let say_goodbye = async {
            let mut writer = self.shared.writer.lock().await;
            // A client that is gone needs no goodbye.
            let _ = writer.0.write_all(&frame::go_away(0)).await;
            let _ = writer.0.shutdown().await;
        };
        // The reader goes on until the client closes its side: a socket that is closed with
        // something unread in it is reset, and a reset makes the client's kernel throw away what
        // was sent last (RFC 1122, section 4.2.2.13).
        let both = async { tokio::join!(say_goodbye, &mut self.reader) };
        let _ = tokio::time::timeout(CLOSING, both).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    /// Reads until the client is gone, has been idle for too long, or breaks the protocol.
    async fn read(
        self: Arc<Self>,
        mut half: ReadHalf<Io>,
        early: Bytes,
        opened: mpsc::Sender<Stream>,
    ) {
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(&early);
        loop {
            match self.take_frames(&mut decoder, &opened).await {
                Ok(()) => {}
                Err(Ended::Violation(violation)) => {
                    tracing::info!("a streaming client breaks the protocol: {violation}");
                    break;
                }
                Err(Ended::Gone) => break,
            }
            decoder.buffer().reserve(READ);
            match tokio::time::timeout(IDLE, half.read_buf(decoder.buffer())).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => self.touch(),
                // The client was silent, but output to it counts as well.
                Err(_) if self.active().elapsed() >= IDLE => break,
                Err(_) => {}
            }
        }
        // Ends every stream's input, then whatever waits for the client to be gone.
        self.inboxes().clear();
        self.gone.send_replace(true);
    }

    async fn take_frames(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        opened: &mpsc::Sender<Stream>,
    ) -> Result<(), Ended> {
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Open { id, headers, fin } => self.open(id, headers, fin, opened).await?,
                Frame::Data { id, bytes, fin } => {
                    // The lock on the map is not held while the queue is full.
                    let inbox = self.inboxes().get(&id).cloned();
                    if let Some(inbox) = inbox.filter(|_| !bytes.is_empty()) {
                        // It fails when the receiver of the stream was dropped, and the bytes are
                        // dropped too.
                        let _ = inbox.send(bytes).await;
                    }
                    if fin {
                        self.inboxes().remove(&id);
                    }
                }
                Frame::Reset { id } => drop(self.inboxes().remove(&id)),
                Frame::Ping { id } => self.write(&frame::pong(id)).await?,
                Frame::GoAway => {}
            }
        }
        Ok(())
    }

    /// Accepts or refuses a stream that the client opens.
    async fn open(
        self: &Arc<Self>,
        id: u32,
        headers: Headers,
        fin: bool,
        opened: &mpsc::Sender<Stream>,
    ) -> Result<(), Ended> {
        if self.inboxes().len() >= MAX_STREAMS || opened.is_closed() {
            return Ok(self.write(&frame::reset(id, ResetStatus::RefusedStream)).await?);
        }
        {
            let (half, encoder) = &mut *self.writer.lock().await;
            let reply = encoder.reply(id);
            half.write_all(&reply).await?;
            half.flush().await?;
        }
        let (sender, input) = mpsc::channel(QUEUE);
        if !fin {
            self.inboxes().insert(id, sender);
        }
        let stream = Stream { headers, id, input, output: Sender { id, shared: self.clone() } };
        // The session may have closed the queue since the check above.
        if let Err(refused) = opened.send(stream).await {
            refused.0.output.reset().await;
        }
        Ok(())
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.0.write_all(bytes).await?;
        // TLS and the WebSocket tunnel keep what is not flushed.
        writer.0.flush().await?;
        self.touch();
        Ok(())
    }

    fn inboxes(&self) -> MutexGuard<'_, HashMap<u32, mpsc::Sender<Bytes>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> Instant {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Why nothing is read any more.
enum Ended {
    Violation(Violation),
    Gone,
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Sender {
    /// Sends a packet as one data frame, and waits until the client takes it.
    pub(crate) async fn send(&self, packet: &mut Packet) -> io::Result<()> {
        let header = frame::data(self.id, packet.payload().len(), false);
        self.shared.write(packet.framed(header)).await
    }

    /// Tells the client that nothing more comes on this stream.
    pub(crate) async fn finish(&self) {
        // It fails only for a client that is gone.
        let _ = self.shared.write(&frame::data(self.id, 0, true)).await;
    }

    /// Drops what the client still sends on this stream.
    pub(crate) fn forget(&self) {
        self.shared.inboxes().remove(&self.id);
    }

    /// Ends the stream in both directions.
    pub(crate) async fn reset(&self) {
        self.forget();
        let _ = self.shared.write(&frame::reset(self.id, ResetStatus::Cancel)).await;
    }
}
