//! Downloads one blob and delivers its bytes in order. It begins as one stream, which resumes where
//! it broke off. If the network turns out to be the bottleneck, the rest is fetched as several
//! ranges at once.
//!
//! Memory is bounded: a stream has `CHUNKS` chunks in flight, each with the result of one network
//! read, up to 400 KiB. The ranges of all downloads of the node share `RANGES` buffers of `RANGE`
//! bytes.

use std::{
    collections::VecDeque,
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use berth_base::error::{Error, Kind, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::{
    repository::{BlobResponse, Repository},
    response::{root_cause, unavailable},
};
use crate::{digest::Digest, observer::Observer, progress::LayerStep};

/// Capacity of the channel between the network and the thread that feeds the process which unpacks.
/// Most of what is under way is in the pipe to that, which costs the daemon no memory.
pub(crate) const CHUNKS: usize = 2;
/// A range in memory is handed over in chunks of this many bytes.
const CHUNK: usize = 64 << 10;
/// Size of one range in bytes.
const RANGE: u64 = 4 << 20;
/// Number of ranges in memory, for all downloads of the node together.
const RANGES: usize = 4;
/// Number of ranges of one blob that are fetched at once.
const PARALLEL: usize = 4;
/// If fewer bytes are left than this, a stream goes on to its end.
const MIN_FOR_RANGES: u64 = 4 * RANGE;

/// When the network counts as the bottleneck: at least this many bytes were received, at least this
/// much time was spent waiting for the network, and hardly any time on anything else. A single
/// connection to an object store is often slower than unpacking. More bytes are required than fit
/// into the channel, so a layer that fetches ranges is already being unpacked and cannot hold their
/// permits while it waits for a slot.
const SLOW_AFTER: u64 = 8 << 20;
const SLOW_WAIT: Duration = Duration::from_millis(500);

/// A download fails if it breaks off this many times in a row without progress in between.
const MAX_BREAKS: u32 = 3;
/// Fewer bytes than this between two breaks do not count as progress.
const PROGRESS: u64 = 64 << 10;
/// Bytes per second. A slower download is stalled. A timer that every byte resets would let a
/// trickle go on for hours (containerd#11650).
const SLOWEST: u64 = 1 << 10;

/// What all downloads on the node share.
#[derive(Debug)]
pub(crate) struct Limits {
    ranges: Semaphore,
    /// How long a download may be slower than `SLOWEST` before it is tried again, if possible from
    /// another endpoint.
    stall: Duration,
    observer: Observer,
}

impl Limits {
    pub(crate) fn new(stall: Duration, observer: Observer) -> Self {
        Self { ranges: Semaphore::new(RANGES), stall, observer }
    }
}

/// A blob to download.
#[derive(Debug)]
pub(crate) struct Download {
    pub repository: Arc<Repository>,
    pub blob: Digest,
    /// Size of the blob in bytes, according to its descriptor.
    pub size: u64,
    pub limits: Arc<Limits>,
    /// The bytes that are here, for reports.
    pub received: AtomicU64,
}

/// Where the bytes go.
enum Sink<'a> {
    Channel(&'a mpsc::Sender<Result<Bytes>>),
    /// Copied into one buffer. A chunk may be a small part of the network's large buffer and keep
    /// all of that alive.
    Memory(&'a mut Vec<u8>),
}

impl Sink<'_> {
    /// Hands over a chunk. False if nobody receives it any more.
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

/// How reading a range ended, if not with an error.
enum RangeEnd {
    Complete,
    /// The network is the bottleneck. The bytes before `at` have been handed over.
    HeldUp {
        at: u64,
    },
}

/// How reading one response ended.
enum ResponseEnd {
    /// The response is complete. It may be shorter than the request.
    Whole,
    NobodyListens,
    HeldUp,
}

/// Whether a stream may be abandoned in favour of several ranges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It is already one of several ranges.
    Patient,
    Impatient,
}

/// Measures one response. Only the time spent waiting for the network counts, because unpacking may
/// be slow as well. When looking for a stall, the pull's other downloads count too: a download that
/// they starve of bandwidth is not dead (containerd#12811).
struct Meter {
    begun: Instant,
    waited: Duration,
    received: u64,
    /// The values when a stall was last looked for.
    checked: Checkpoint,
}

struct Checkpoint {
    waited: Duration,
    received: u64,
    received_by_pull: u64,
}

impl Meter {
    fn new(received_by_pull: u64) -> Self {
        let checked = Checkpoint { waited: Duration::ZERO, received: 0, received_by_pull };
        Self { begun: Instant::now(), waited: Duration::ZERO, received: 0, checked }
    }

    async fn wait<T>(&mut self, network: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let result = network.await;
        self.waited += asked.elapsed();
        result
    }

    /// Whether three quarters of the time or more were spent waiting for the network.
    fn is_held_up(&self) -> bool {
        self.received >= SLOW_AFTER
            && self.waited >= SLOW_WAIT
            && self.waited * 4 >= self.begun.elapsed() * 3
    }

    /// Whether hardly anything was received during `window`.
    fn is_stalled(&mut self, window: Duration, received_by_pull: u64) -> bool {
        let waited = self.waited - self.checked.waited;
        if waited < window {
            return false;
        }
        let enough = SLOWEST * waited.as_secs().max(1);
        let is_stalled = self.received - self.checked.received < enough
            && received_by_pull - self.checked.received_by_pull < enough;
        self.checked =
            Checkpoint { waited: self.waited, received: self.received, received_by_pull };
        is_stalled
    }
}

impl Download {
    /// Sends the bytes of the blob from offset `start` on. If the download fails, sends the error.
    pub(crate) async fn send(&self, start: u64, sender: mpsc::Sender<Result<Bytes>>) {
        self.repository.progress.expected.fetch_add(self.size - start, Ordering::Relaxed);
        if let Err(error) = self.run(start, &sender).await {
            // If the receiver is gone, it has failed itself, and reports its own error.
            let _ = sender.send(Err(error)).await;
        } else {
            self.repository.progress.watched.report(&self.blob, LayerStep::Downloaded);
        }
    }

    async fn run(&self, start: u64, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let whole = start..self.size;
        match self.read(whole, Patience::Impatient, Sink::Channel(sender)).await? {
            RangeEnd::Complete => Ok(()),
            RangeEnd::HeldUp { at } => {
                tracing::debug!(
                    blob = %self.blob,
                    at,
                    "the network holds the download up: it goes on in several ranges at once"
                );
                self.send_ranges(at, sender).await
            }
        }
    }

    /// Downloads the bytes from `start` on in several ranges at once, and sends them in order.
    async fn send_ranges(&self, start: u64, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let ranges =
            (start..self.size).step_by(RANGE as usize).map(|at| at..(at + RANGE).min(self.size));
        let downloads = stream::iter(ranges).map(|range| self.range(range));
        // `buffered` keeps the order and starts another range whenever one is taken out.
        let mut downloads = pin!(downloads.buffered(PARALLEL).fuse());
        let mut ready: VecDeque<(SemaphorePermit<'_>, Bytes)> = VecDeque::new();
        loop {
            // Fetching more and handing over what is ready go on at the same time. Both futures are
            // cancel-safe, so the branch that loses does not lose data.
            tokio::select! {
                Some(range) = downloads.next() => ready.push_back(range?),
                room = sender.reserve(), if !ready.is_empty() => {
                    let (Ok(room), Some((_, range))) = (room, ready.front_mut()) else {
                        return Ok(());
                    };
                    room.send(Ok(range.split_to(CHUNK.min(range.len()))));
                    if range.is_empty() {
                        // Releases the permit, so that another range can be fetched.
                        ready.pop_front();
                    }
                }
                else => return Ok(()),
            }
        }
    }

    /// Downloads a range into memory. The permit for that memory goes with it.
    async fn range(&self, range: Range<u64>) -> Result<(SemaphorePermit<'_>, Bytes)> {
        // Acquired before the request is sent, so that no response has to wait for memory.
        let permit = self.limits.ranges.acquire().await.context("the semaphore is never closed")?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        self.read(range, Patience::Patient, Sink::Memory(&mut bytes)).await?;
        Ok((permit, bytes.into()))
    }

    /// Reads all of `range`. If a response breaks off, another request continues where it was.
    async fn read(
        &self,
        range: Range<u64>,
        patience: Patience,
        mut sink: Sink<'_>,
    ) -> Result<RangeEnd> {
        let mut at = range.start;
        let mut breaks = 0;
        while at < range.end {
            let before = at;
            let may_be_held_up =
                patience == Patience::Impatient && range.end - at >= MIN_FOR_RANGES;
            let failure =
                match self.read_response(&mut at, range.end, may_be_held_up, &mut sink).await {
                    Ok(ResponseEnd::Whole) if at < range.end => {
                        unavailable(format!("truncated: {at} of {} bytes", self.size))
                    }
                    Ok(ResponseEnd::Whole | ResponseEnd::NobodyListens) => break,
                    Ok(ResponseEnd::HeldUp) => return Ok(RangeEnd::HeldUp { at }),
                    Err(error) => error,
                };
            // Progress resets the count, so that even a connection that breaks every few megabytes
            // delivers a large blob in the end.
            breaks = if at - before >= PROGRESS { 0 } else { breaks + 1 };
            if failure.kind != Kind::RegistryUnavailable || breaks == MAX_BREAKS {
                return Err(failure);
            }
            tracing::info!(
                blob = %self.blob,
                received = at,
                size = self.size,
                error = %failure,
                "a download broke off and is resumed"
            );
        }
        Ok(RangeEnd::Complete)
    }

    /// Sends one request for `at..end` and reads the response. `at` advances with the bytes that
    /// are handed over.
    async fn read_response(
        &self,
        at: &mut u64,
        end: u64,
        may_be_held_up: bool,
        sink: &mut Sink<'_>,
    ) -> Result<ResponseEnd> {
        let mut blob = self.repository.blob(&self.blob, &(*at..end), self.size).await?;
        // A registry without ranges sends the whole blob. Bytes that are already here are skipped.
        let mut skip = at.checked_sub(blob.starts_at).ok_or_else(|| {
            unavailable("the registry sent another range than it was asked for".to_owned())
        })?;
        let mut meter = Meter::new(self.received_by_pull());
        loop {
            // If nothing arrives at all, the HTTP client's read timeout ends this; the meter is for
            // a trickle.
            let chunk = meter
                .wait(blob.response.chunk())
                .await
                .map_err(|error| unavailable(root_cause(&error)))?;
            let Some(mut chunk) = chunk else { return Ok(ResponseEnd::Whole) };
            self.count(chunk.len() as u64);
            meter.received += chunk.len() as u64;
            if meter.is_stalled(self.limits.stall, self.received_by_pull()) {
                // The caller retries at once, and then another endpoint comes first.
                self.repository.avoid(blob.server);
                return Err(unavailable(format!(
                    "stalled: less than {SLOWEST} bytes a second for {:?}",
                    self.limits.stall
                )));
            }
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let _ = chunk.split_to(skipped as usize);
            self.check_end(&mut chunk, *at, end, &blob)?;
            *at += chunk.len() as u64;
            if !chunk.is_empty() && !sink.take(chunk).await {
                return Ok(ResponseEnd::NobodyListens);
            }
            // The response is the whole blob, of which only a part is needed. Drop the rest.
            if *at == end && end < self.size && !blob.is_partial {
                return Ok(ResponseEnd::Whole);
            }
            // The rest of this response is dropped; the ranges begin where it stopped.
            if may_be_held_up && blob.knows_ranges && meter.is_held_up() {
                return Ok(ResponseEnd::HeldUp);
            }
        }
    }

    /// Truncates a chunk that goes beyond `end`.
    ///
    /// # Errors
    /// `Internal` if the blob is longer than its descriptor says. The digest could not match any
    /// more, and a hostile server might send bytes for ever.
    fn check_end(&self, chunk: &mut Bytes, at: u64, end: u64, blob: &BlobResponse) -> Result<()> {
        if at + chunk.len() as u64 <= end {
            return Ok(());
        }
        if blob.is_partial || end == self.size {
            return Err(Error::new(
                Kind::Internal,
                format!("the blob is longer than the {} bytes of its descriptor", self.size),
            ));
        }
        chunk.truncate((end - at) as usize);
        Ok(())
    }

    fn count(&self, bytes: u64) {
        let progress = &self.repository.progress;
        progress.received.fetch_add(bytes, Ordering::Relaxed);
        let before = self.received.fetch_add(bytes, Ordering::Relaxed);
        progress.watched.downloaded(&self.blob, self.size, before, bytes);
        (self.limits.observer.bytes_received)(bytes);
    }

    fn received_by_pull(&self) -> u64 {
        self.repository.progress.received.load(Ordering::Relaxed)
    }
}
