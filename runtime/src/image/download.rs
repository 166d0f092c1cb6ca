//! One blob's bytes, in order: a stream that goes on where it broke, and in several ranges at once where the network is what holds it up.
//!
//! Memory: a stream has `CHUNKS` chunks in flight, each what one read of the network gave, up to 400 KiB; ranges of all downloads
//! together have `PIECES` pieces of `PIECE` bytes.

use std::{
    collections::VecDeque,
    ops::Range,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::{
    reference::Digest,
    registry::{Registry, root_cause, unavailable},
};
use crate::{
    error::{Error, Kind, Result},
    telemetry::METRICS,
};

/// Chunks between the network and the inflating thread.
pub(super) const CHUNKS: usize = 8;
/// Of a piece.
const CHUNK: usize = 64 << 10;
const PIECE: u64 = 4 << 20;
const PIECES: usize = 4;
/// Of one blob.
const PARALLEL: usize = 4;
/// Where less is to come, a stream is not left for ranges.
const IN_PIECES_FROM: u64 = 4 * PIECE;
/// When the network holds a stream up: after so many bytes, so long waited for them, and hardly for anything else. A single connection
/// to an object store is often slower than the unpacking. More bytes than fit in the channel: who has ranges in memory is being unpacked,
/// and will give them back.
const SLOW_AFTER: u64 = 8 << 20;
const SLOW_WAIT: Duration = Duration::from_millis(500);
/// Breaks in a row with hardly a byte in between before a download counts as failed.
const MAX_BREAKS: u32 = 3;
/// Less than that between two breaks is no progress.
const PROGRESS: u64 = 64 << 10;
/// Bytes a second below which nothing is worth waiting for.
const SLOWEST: u64 = 1 << 10;

/// What downloads on this node share.
#[derive(Debug)]
pub(super) struct Limits {
    pieces: Semaphore,
    /// So long may a pull be slower than `SLOWEST` before it tries anew, elsewhere if it can.
    stall: Duration,
}

impl Limits {
    pub(super) fn new(stall: Duration) -> Self {
        Self { pieces: Semaphore::new(PIECES), stall }
    }
}

#[derive(Debug)]
pub(super) struct Download {
    pub registry: Arc<Registry>,
    pub blob: Digest,
    pub size: u64,
    pub limits: Arc<Limits>,
}

/// Where bytes go.
enum Sink<'a> {
    Channel(&'a mpsc::Sender<Result<Bytes>>),
    /// In one piece: a chunk of the network's may be a small part of a large buffer.
    Memory(&'a mut Vec<u8>),
}

impl Sink<'_> {
    /// Whether anybody is there to take it.
    async fn take(&mut self, chunk: Bytes) -> bool {
        match self {
            Self::Channel(sender) => sender.send(Ok(chunk)).await.is_ok(),
            Self::Memory(bytes) => {
                bytes.extend_from_slice(&chunk);
                true
            }
        }
    }
}

/// How a range ended, if not in an error.
enum Outcome {
    Ended,
    HeldUp { at: u64 },
}

/// How an answer ended.
enum Answered {
    Whole,
    NobodyListens,
    HeldUp,
}

/// Watches one answer. Waiting is counted only while the network is waited for, and bytes of the pull's other downloads count too, so
/// that one that others starve is not taken for dead.
struct Watch {
    begun: Instant,
    waited: Duration,
    own: u64,
    /// Since the last look for a stall.
    checked: Mark,
}

struct Mark {
    waited: Duration,
    own: u64,
    all: u64,
}

impl Watch {
    fn new(all: u64) -> Self {
        let checked = Mark { waited: Duration::ZERO, own: 0, all };
        Self { begun: Instant::now(), waited: Duration::ZERO, own: 0, checked }
    }

    async fn wait<T>(&mut self, network: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let result = network.await;
        self.waited += asked.elapsed();
        result
    }

    fn is_held_up(&self) -> bool {
        self.own >= SLOW_AFTER && self.waited >= SLOW_WAIT && self.waited * 4 >= self.begun.elapsed() * 3
    }

    /// Whether hardly anything came in `window`; `all` is what the pull has received.
    fn is_stalled(&mut self, window: Duration, all: u64) -> bool {
        let waited = self.waited - self.checked.waited;
        if waited < window {
            return false;
        }
        let enough = SLOWEST * waited.as_secs().max(1);
        let stalled = self.own - self.checked.own < enough && all - self.checked.all < enough;
        self.checked = Mark { waited: self.waited, own: self.own, all };
        stalled
    }
}

impl Download {
    /// Sends the blob from `start` on, or the error that ended it.
    pub(super) async fn send(&self, start: u64, sender: mpsc::Sender<Result<Bytes>>) {
        self.registry.progress.expected.fetch_add(self.size - start, Ordering::Relaxed);
        if let Err(error) = self.run(start, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    }

    async fn run(&self, start: u64, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        match self.read(start..self.size, true, Sink::Channel(sender)).await? {
            Outcome::Ended => Ok(()),
            Outcome::HeldUp { at } => {
                tracing::debug!(blob = %self.blob, at, "the network holds it up: several ranges at once");
                self.in_pieces(at, sender).await
            }
        }
    }

    async fn in_pieces(&self, start: u64, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let ranges = (start..self.size).step_by(PIECE as usize).map(|at| at..(at + PIECE).min(self.size));
        let pieces = stream::iter(ranges).map(|range| self.piece(range));
        let mut pieces = pin!(pieces.buffered(PARALLEL).fuse());
        let mut ready: VecDeque<(SemaphorePermit<'_>, Bytes)> = VecDeque::new();
        loop {
            tokio::select! {
                Some(piece) = pieces.next() => ready.push_back(piece?),
                room = sender.reserve(), if !ready.is_empty() => {
                    let (Ok(room), Some((_, piece))) = (room, ready.front_mut()) else { return Ok(()) };
                    room.send(Ok(piece.split_to(CHUNK.min(piece.len()))));
                    if piece.is_empty() {
                        ready.pop_front();
                    }
                }
                else => return Ok(()),
            }
        }
    }

    /// A range in memory, and the right to have it there.
    async fn piece(&self, range: Range<u64>) -> Result<(SemaphorePermit<'_>, Bytes)> {
        let permit = self.limits.pieces.acquire().await.context("pieces are never closed")?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        self.read(range, false, Sink::Memory(&mut bytes)).await?;
        Ok((permit, bytes.into()))
    }

    /// Reads all of `range`. After a break it goes on where it was. With `impatient` it ends early when the network holds it up.
    async fn read(&self, range: Range<u64>, impatient: bool, mut sink: Sink<'_>) -> Result<Outcome> {
        let mut at = range.start;
        let mut breaks = 0;
        while at < range.end {
            let before = at;
            let impatient = impatient && range.end - at >= IN_PIECES_FROM;
            let broken = match self.read_once(&mut at, range.end, impatient, &mut sink).await {
                Ok(Answered::Whole) if at < range.end => unavailable(format!("truncated: {at} of {} bytes", self.size)),
                Ok(Answered::Whole | Answered::NobodyListens) => return Ok(Outcome::Ended),
                Ok(Answered::HeldUp) => return Ok(Outcome::HeldUp { at }),
                Err(error) => error,
            };
            breaks = if at - before >= PROGRESS { 0 } else { breaks + 1 };
            if broken.kind != Kind::RegistryUnavailable || breaks == MAX_BREAKS {
                return Err(broken);
            }
            tracing::info!(blob = %self.blob, received = at, size = self.size, error = %broken, "download broke, resuming");
        }
        Ok(Outcome::Ended)
    }

    /// Reads one answer.
    async fn read_once(&self, at: &mut u64, end: u64, impatient: bool, sink: &mut Sink<'_>) -> Result<Answered> {
        let mut answer = self.registry.blob(&self.blob, &(*at..end), self.size).await?;
        // A registry that knows no ranges begins anew: what is there already is read once more.
        let skip = at.checked_sub(answer.starts_at);
        let mut skip = skip.ok_or_else(|| unavailable("a range that was not asked for".to_owned()))?;
        let mut watch = Watch::new(self.received());
        loop {
            let chunk = watch.wait(answer.response.chunk()).await.map_err(|error| unavailable(root_cause(&error)))?;
            let Some(mut chunk) = chunk else { return Ok(Answered::Whole) };
            self.registry.progress.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            METRICS.pull_bytes.inc_by(chunk.len() as u64);
            watch.own += chunk.len() as u64;
            if watch.is_stalled(self.limits.stall, self.received()) {
                self.registry.avoid(answer.endpoint);
                let told = format!("stalled: less than {SLOWEST} bytes a second for {:?}", self.limits.stall);
                return Err(unavailable(told));
            }
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let _ = chunk.split_to(skipped as usize);
            if *at + chunk.len() as u64 > end {
                if answer.partial || end == self.size {
                    let told = format!("the blob is longer than the {} bytes of its descriptor", self.size);
                    return Err(Error::new(Kind::Internal, told));
                }
                chunk.truncate((end - *at) as usize);
            }
            *at += chunk.len() as u64;
            if !chunk.is_empty() && !sink.take(chunk).await {
                return Ok(Answered::NobodyListens);
            }
            if *at == end && end < self.size && !answer.partial {
                return Ok(Answered::Whole);
            }
            if impatient && answer.knows_ranges && watch.is_held_up() {
                return Ok(Answered::HeldUp);
            }
        }
    }

    /// By the whole pull.
    fn received(&self) -> u64 {
        self.registry.progress.received.load(Ordering::Relaxed)
    }
}
