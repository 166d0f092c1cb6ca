//! A SPDY connection: one task that reads and hands on, and a lock around who writes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::spdy::{self, Decoder, Encoder, Frame, HEADER, Headers, ResetStatus, Violation};

/// Nothing in either direction for so long, and the session is over, as in the kubelet.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// At once; a connection of a forwarded port has two.
const MAX_STREAMS: usize = 1024;
/// Read and not taken yet, of each stream; then nothing more is read.
const QUEUE: usize = 8;
const READ: usize = 32 << 10;
/// For the peer to read the last of it.
pub(super) const PARTING: Duration = Duration::from_secs(5);

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
/// What is left of an HTTP connection after its upgrade.
pub(crate) type Io = Box<dyn Duplex>;

pub(crate) struct Connection {
    shared: Arc<Shared>,
    opened: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
}

/// Opened by the client, and answered.
pub(crate) struct Stream {
    pub headers: Headers,
    pub id: u32,
    /// Ends when the client has no more to send, or is gone.
    pub input: mpsc::Receiver<Bytes>,
    pub output: Sender,
}

/// Writes on one stream.
#[derive(Clone)]
pub(crate) struct Sender {
    id: u32,
    shared: Arc<Shared>,
}

struct Shared {
    writer: tokio::sync::Mutex<(WriteHalf<Io>, Encoder)>,
    /// Of streams on which the client may still send.
    inboxes: Mutex<HashMap<u32, mpsc::Sender<Bytes>>>,
    gone: watch::Sender<bool>,
    active: Mutex<Instant>,
}

impl Connection {
    /// `early`: what came behind the request.
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
        while let Some(stream) = self.opened.recv().await {
            stream.output.reset().await;
        }
    }

    /// Becomes true when the client is gone.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.shared.gone.subscribe()
    }

    /// Says goodbye, and waits a little for the client to have heard everything.
    pub(crate) async fn close(mut self) {
        self.opened.close();
        let farewell = async {
            let mut writer = self.shared.writer.lock().await;
            let _ = writer.0.write_all(&spdy::go_away(0)).await;
            let _ = writer.0.shutdown().await;
        };
        // To close with something unread would take back what was sent last.
        let _ = tokio::time::timeout(PARTING, async { tokio::join!(farewell, &mut self.reader) }).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    async fn read(self: Arc<Self>, mut half: ReadHalf<Io>, early: Bytes, opened: mpsc::Sender<Stream>) {
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(&early);
        loop {
            match self.take_frames(&mut decoder, &opened).await {
                Ok(()) => {}
                Err(Ended::Violation(violation)) => {
                    tracing::info!("a streaming client is cut off: {violation}");
                    break;
                }
                Err(Ended::Gone) => break,
            }
            decoder.buffer().reserve(READ);
            match tokio::time::timeout(IDLE, half.read_buf(decoder.buffer())).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => self.touch(),
                Err(_) if self.active().elapsed() >= IDLE => break,
                Err(_) => {}
            }
        }
        self.inboxes().clear();
        self.gone.send_replace(true);
    }

    async fn take_frames(self: &Arc<Self>, decoder: &mut Decoder, opened: &mpsc::Sender<Stream>) -> Result<(), Ended> {
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Open { id, headers, fin } => self.open(id, headers, fin, opened).await?,
                Frame::Data { id, bytes, fin } => {
                    let inbox = self.inboxes().get(&id).cloned();
                    if let Some(inbox) = inbox.filter(|_| !bytes.is_empty()) {
                        // Nobody may want it any more.
                        let _ = inbox.send(bytes).await;
                    }
                    if fin {
                        self.inboxes().remove(&id);
                    }
                }
                Frame::Reset { id } => drop(self.inboxes().remove(&id)),
                Frame::Ping { id } => self.write(&spdy::pong(id)).await?,
                Frame::GoAway => {}
            }
        }
        Ok(())
    }

    async fn open(
        self: &Arc<Self>,
        id: u32,
        headers: Headers,
        fin: bool,
        opened: &mpsc::Sender<Stream>,
    ) -> Result<(), Ended> {
        if self.inboxes().len() >= MAX_STREAMS || opened.is_closed() {
            return Ok(self.write(&spdy::reset(id, ResetStatus::Refused)).await?);
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
        if let Err(refused) = opened.send(stream).await {
            refused.0.output.reset().await;
        }
        Ok(())
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.0.write_all(bytes).await?;
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
    /// Sends what is in `buffer` behind its first `HEADER` bytes, which are for the frame. Waits for the client to take it.
    pub(crate) async fn send(&self, buffer: &mut [u8]) -> io::Result<()> {
        let header = spdy::data(self.id, buffer.len() - HEADER, false);
        buffer[..HEADER].copy_from_slice(&header);
        self.shared.write(buffer).await
    }

    /// No more comes on this stream.
    pub(crate) async fn finish(&self) {
        let _ = self.shared.write(&spdy::data(self.id, 0, true)).await;
    }

    /// What the client still sends on this stream is for nobody.
    pub(crate) fn forget(&self) {
        self.shared.inboxes().remove(&self.id);
    }

    pub(crate) async fn reset(&self) {
        self.shared.inboxes().remove(&self.id);
        let _ = self.shared.write(&spdy::reset(self.id, ResetStatus::Cancel)).await;
    }
}
