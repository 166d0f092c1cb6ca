//! One blob's bytes, in order: a stream that goes on where it broke, and for a large blob several ranges at once.
//!
//! Memory: a stream has `CHUNKS` chunks of up to 64 KiB in flight; ranges of all downloads together have `PIECES` pieces of `PIECE` bytes.

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
    registry::{Answer, Registry, root_cause, unavailable},
};
use crate::error::{Error, Kind, Result};

/// Chunks between the network and the inflating thread.
pub(super) const CHUNKS: usize = 16;
const PIECE: u64 = 4 << 20;
const PIECES: usize = 8;
/// Of one blob. A single connection to an object store is often slower than the unpacking.
const PARALLEL: usize = 4;
/// A smaller blob is one stream.
const IN_PIECES_FROM: u64 = 4 * PIECE;
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
    Memory(&'a mut Vec<Bytes>),
}

impl Sink<'_> {
    /// Whether anybody is there to take it.
    async fn take(&mut self, chunk: Bytes) -> bool {
        match self {
            Self::Channel(sender) => sender.send(Ok(chunk)).await.is_ok(),
            Self::Memory(chunks) => {
                chunks.push(chunk);
                true
            }
        }
    }
}

/// Watches one answer: waiting is counted only while the network is waited for, and bytes of the pull's other downloads count too,
/// so that one that others starve is not taken for dead.
struct Watch {
    waited: Duration,
    own: u64,
    all_before: u64,
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
        let mut opened = None;
        if self.size - start >= IN_PIECES_FROM {
            let answer = self.registry.blob(&self.blob, &(start..start + PIECE), self.size).await?;
            if answer.starts_at == start && answer.partial {
                return self.in_pieces(start, answer, sender).await;
            }
            opened = Some(answer);
        }
        self.read(start..self.size, opened, Sink::Channel(sender)).await
    }

    async fn in_pieces(&self, start: u64, answer: Answer, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let first = stream::iter([(start..start + PIECE, Some(answer))]);
        let others = (start + PIECE..self.size).step_by(PIECE as usize);
        let others = others.map(|at| (at..(at + PIECE).min(self.size), None));
        let pieces = first.chain(stream::iter(others)).map(|(range, opened)| self.piece(range, opened));
        let mut pieces = pin!(pieces.buffered(PARALLEL).fuse());
        let mut ready: VecDeque<(SemaphorePermit<'_>, VecDeque<Bytes>)> = VecDeque::new();
        loop {
            tokio::select! {
                Some(piece) = pieces.next() => ready.push_back(piece?),
                room = sender.reserve(), if !ready.is_empty() => {
                    let (Ok(room), Some((_, chunks))) = (room, ready.front_mut()) else { return Ok(()) };
                    if let Some(chunk) = chunks.pop_front() {
                        room.send(Ok(chunk));
                    }
                    if chunks.is_empty() {
                        ready.pop_front();
                    }
                }
                else => return Ok(()),
            }
        }
    }

    /// A range in memory, and the right to have it there.
    async fn piece(&self, range: Range<u64>, opened: Option<Answer>) -> Result<(SemaphorePermit<'_>, VecDeque<Bytes>)> {
        let permit = self.limits.pieces.acquire().await.context("pieces are never closed")?;
        let mut chunks = Vec::new();
        self.read(range, opened, Sink::Memory(&mut chunks)).await?;
        Ok((permit, chunks.into()))
    }

    /// Reads all of `range`. After a break it goes on where it was.
    async fn read(&self, range: Range<u64>, mut opened: Option<Answer>, mut sink: Sink<'_>) -> Result<()> {
        let mut at = range.start;
        let mut breaks = 0;
        while at < range.end {
            let before = at;
            let broken = match self.read_once(&mut at, range.end, opened.take(), &mut sink).await {
                Ok(true) if at == range.end => return Ok(()),
                Ok(true) => unavailable(format!("truncated: {at} of {} bytes", self.size)),
                Ok(false) => return Ok(()),
                Err(error) => error,
            };
            breaks = if at - before >= PROGRESS { 0 } else { breaks + 1 };
            if broken.kind != Kind::RegistryUnavailable || breaks == MAX_BREAKS {
                return Err(broken);
            }
            tracing::info!(blob = %self.blob, received = at, size = self.size, error = %broken, "download broke, resuming");
        }
        Ok(())
    }

    /// Reads one answer to its end; whether anybody still takes the bytes.
    async fn read_once(&self, at: &mut u64, end: u64, opened: Option<Answer>, sink: &mut Sink<'_>) -> Result<bool> {
        let mut answer = match opened {
            Some(answer) => answer,
            None => self.registry.blob(&self.blob, &(*at..end), self.size).await?,
        };
        // A registry that knows no ranges begins anew: what is there already is read once more.
        let mut skip =
            at.checked_sub(answer.starts_at).ok_or_else(|| unavailable("a range that was not asked for".to_owned()))?;
        let mut watch = Watch { waited: Duration::ZERO, own: 0, all_before: self.received() };
        loop {
            let asked = Instant::now();
            let chunk = answer.response.chunk().await.map_err(|error| unavailable(root_cause(&error)))?;
            watch.waited += asked.elapsed();
            let Some(mut chunk) = chunk else { return Ok(true) };
            self.registry.progress.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            watch.own += chunk.len() as u64;
            if self.is_stalled(&mut watch) {
                self.registry.avoid(answer.endpoint);
                return Err(unavailable(format!(
                    "stalled: less than {SLOWEST} bytes a second for {:?}",
                    self.limits.stall
                )));
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
                return Ok(false);
            }
            if *at == end && end < self.size && !answer.partial {
                return Ok(true);
            }
        }
    }

    /// By the whole pull.
    fn received(&self) -> u64 {
        self.registry.progress.received.load(Ordering::Relaxed)
    }

    fn is_stalled(&self, watch: &mut Watch) -> bool {
        if watch.waited < self.limits.stall {
            return false;
        }
        let enough = SLOWEST * watch.waited.as_secs().max(1);
        let all = self.received();
        let stalled = watch.own < enough && all - watch.all_before < enough;
        *watch = Watch { waited: Duration::ZERO, own: 0, all_before: all };
        stalled
    }
}
