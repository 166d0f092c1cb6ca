//! Fetches one layer: downloads, decompresses and unpacks it at the same time, then verifies it,
//! then commits it to the store.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use berth_base::{
    error::{Error, Kind, Result},
    observe::{step, step_blocking, steps::pull_image},
};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared, join, join_all};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    archive::ArchiveReader,
    digest::Digest,
    layer_dir::FILES,
    layer_key::LayerKey,
    manifest::LayerDescriptor,
    observer::Observer,
    progress::{LayerStep, Watched},
    registry::{CHUNKS, Download, Limits, Repository},
    source::Source,
    store::{Layers, Lease, PartialBlob, ResumeStates},
    unblock::unblock,
    unpack::{self, Unpacked},
    unpacker::Unpacker,
    usage::Usage,
};

/// A layer that is being fetched. Everyone who waits for it gets the same lease or error.
pub(super) type PendingLayer = Shared<BoxFuture<'static, Result<Arc<Lease>>>>;

/// Where blobs come from.
#[derive(Clone)]
pub(super) enum BlobSource {
    Registry(Arc<Repository>),
    Archive { reader: Arc<ArchiveReader>, watched: Watched },
}

impl BlobSource {
    /// Tells one who watches.
    fn report(&self, layer: &LayerDescriptor, step: LayerStep) {
        match self {
            Self::Registry(repository) => {
                repository.progress.watched.report(&layer.blob, step);
            }
            Self::Archive { watched, .. } => watched.report(&layer.diff_id, step),
        }
    }

    /// A small blob, verified.
    ///
    /// # Errors
    /// The document is missing, too large or damaged; the registry is unavailable.
    pub(super) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self {
            Self::Registry(repository) => repository.document(digest).await,
            Self::Archive { reader, .. } => {
                let archive = reader.clone();
                let digest = digest.clone();
                unblock(move || archive.by_digest(&digest)).await
            }
        }
    }
}

/// Fetches layers, with limits for all pulls of the node together.
#[derive(Debug)]
pub(super) struct LayerFetcher {
    layers: Arc<Layers>,
    resume_states: Arc<ResumeStates>,
    unpacker: Arc<Unpacker>,
    limits: Arc<Limits>,
    observer: Observer,
    /// Limits how many layers are downloaded at once. It is more than are unpacked at once, so that
    /// the first bytes of the next layer are here when a slot becomes free.
    downloads: Semaphore,
    /// Limits how many layers are unpacked at once.
    slots: Semaphore,
}

impl LayerFetcher {
    pub(super) fn new(
        layers: Arc<Layers>,
        resume_states: Arc<ResumeStates>,
        stall: Duration,
        observer: Observer,
    ) -> Self {
        // Each layer keeps two threads busy. With more layers than cores they would only take
        // turns.
        let slots = std::thread::available_parallelism().map_or(2, usize::from).clamp(3, 8);
        Self {
            layers,
            resume_states,
            unpacker: Arc::default(),
            limits: Arc::new(Limits::new(stall, observer)),
            observer,
            downloads: Semaphore::new(2 * slots),
            slots: Semaphore::new(slots),
        }
    }

    /// Returns a lease on the layer, after fetching it if it is not on disk. `below` are the layers
    /// under it, bottom first.
    ///
    /// # Errors
    /// `Internal` if the content does not match its digests; otherwise those of the steps.
    pub(super) async fn fetch(
        &self,
        source: &BlobSource,
        layer: &LayerDescriptor,
        below: Vec<PendingLayer>,
    ) -> Result<Arc<Lease>> {
        // Another image may have it, or a pull that has just ended.
        let present = layer
            .keys
            .each()
            .into_iter()
            .find_map(|key| self.layers.lease(std::slice::from_ref(key)));
        if let Some(lease) = present {
            (self.observer.layer_reused)();
            source.report(layer, LayerStep::Present);
            return Ok(Arc::new(lease));
        }
        (self.observer.layer_pulled)();
        source.report(layer, LayerStep::Waiting);
        let prepared = self.layers.prepare()?;
        let work = self.fetch_into(&prepared, source, layer, below);
        match step(pull_image::LAYER, work).await {
            Ok(lease) => {
                source.report(layer, LayerStep::Complete);
                Ok(Arc::new(lease))
            }
            Err(error) => {
                Layers::abandon(&prepared).await;
                Err(error.during(format!("layer {}", layer.blob)))
            }
        }
    }

    async fn fetch_into(
        &self,
        prepared: &Path,
        source: &BlobSource,
        layer: &LayerDescriptor,
        below: Vec<PendingLayer>,
    ) -> Result<Lease> {
        // The permit is released before waiting for the layers below, which may still need one.
        // Otherwise layers that wait could hold all permits, and nothing would ever move.
        let unpacked = {
            let _permit =
                self.downloads.acquire().await.context("the semaphore is never closed")?;
            self.unpack(prepared, source, layer).await?
        };
        // Until the commit nobody can see the layer, so a failure here leaves nothing behind.
        verify(layer, &unpacked)?;
        let key = match unpacked.implied.is_empty() {
            true => &layer.keys.diff,
            false => {
                inherit_from(below, prepared.join(FILES), unpacked.implied).await?;
                &layer.keys.chain
            }
        };
        self.commit(prepared, key, unpacked.usage).await
    }

    async fn commit(&self, prepared: &Path, key: &LayerKey, usage: Usage) -> Result<Lease> {
        let layers = self.layers.clone();
        let prepared = prepared.to_owned();
        let key = key.clone();
        let commit = move || Ok(layers.commit(&prepared, &key, usage)?);
        unblock(move || step_blocking(pull_image::COMMIT, commit)).await
    }

    async fn unpack(
        &self,
        prepared: &Path,
        source: &BlobSource,
        layer: &LayerDescriptor,
    ) -> Result<Unpacked> {
        match source {
            BlobSource::Registry(repository) => {
                self.download_and_unpack(prepared, repository, layer).await
            }
            BlobSource::Archive { reader, watched } => {
                let mut blob = Reported {
                    blob: reader.blob(&layer.blob)?,
                    watched: watched.clone(),
                    layer: layer.clone(),
                    read: 0,
                };
                let target = prepared.to_owned();
                let unpacker = self.unpacker.clone();
                let _slot = self.slots.acquire().await.context("the semaphore is never closed")?;
                // Like a registry's, the content is verified against its digests afterwards.
                unblock(move || unpacker.unpack(&mut blob, &target)).await
            }
        }
    }

    /// Downloads and unpacks at once, with a channel between the two.
    async fn download_and_unpack(
        &self,
        prepared: &Path,
        repository: &Arc<Repository>,
        layer: &LayerDescriptor,
    ) -> Result<Unpacked> {
        let partial = self.resume_states.partial_blob(&layer.blob, layer.size);
        // The part that is here already is read from disk, and only the rest is requested.
        let start = partial.as_ref().map_or(0, |partial| partial.length);
        let download = Download {
            repository: repository.clone(),
            blob: layer.blob.clone(),
            size: layer.size,
            limits: self.limits.clone(),
            received: start.into(),
        };
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let chunks = Chunks { partial, receiver };
        let target = prepared.to_owned();
        let file = layer.file.clone();
        let unpacker = self.unpacker.clone();
        let unpacking = async {
            // While this waits for a slot, the download fills the channel and then pauses.
            let _slot = self.slots.acquire().await.context("the semaphore is never closed")?;
            unblock(move || chunks.unpack(&unpacker, &target, file.as_deref())).await
        };
        // The download sends its error through the channel, and unpacking returns it.
        let ((), unpacked) = join(download.send(start, sender), unpacking).await;
        unpacked
    }
}

/// Checks the content against the digests in the manifest and the config. Those documents were
/// verified by their own digests, so this closes the chain from the name to the files.
fn verify(layer: &LayerDescriptor, unpacked: &Unpacked) -> Result<()> {
    for (what, expected, actual) in
        [("digest", &layer.blob, &unpacked.blob), ("diff-id", &layer.diff_id, &unpacked.diff_id)]
    {
        if expected != actual {
            return Err(Error::new(
                Kind::Internal,
                format!("wrong {what}: expected {expected}, got {actual}"),
            ));
        }
    }
    Ok(())
}

/// Gives directories that the tar leaves out the attributes that they have in the layers below.
async fn inherit_from(
    below: Vec<PendingLayer>,
    own: PathBuf,
    implied: Vec<OsString>,
) -> Result<()> {
    // Most layers do not depend on those below, so only here they are waited for. Their leases keep
    // the directories from being collected while they are read.
    let below: Vec<Arc<Lease>> = join_all(below).await.into_iter().collect::<Result<_>>()?;
    let directories: Vec<PathBuf> =
        below.iter().rev().flat_map(|lease| lease.directories()).collect();
    unblock(move || Ok(unpack::inherit_attributes(&own, &implied, &directories)?)).await
}

/// A blob of an archive, of which is told how much was read.
struct Reported<S> {
    blob: S,
    watched: Watched,
    layer: LayerDescriptor,
    read: u64,
}

impl<S: Source> Source for Reported<S> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.blob.next()?;
        let (layer, size) = (&self.layer.diff_id, self.layer.size);
        match &chunk {
            Some(chunk) => {
                self.watched.downloaded(layer, size, self.read, chunk.len() as u64);
                self.read += chunk.len() as u64;
            }
            // What is smaller than the grain of reports is told at its end.
            None => {
                self.watched.report(layer, LayerStep::Downloading { received: self.read, size });
            }
        }
        Ok(chunk)
    }
}

/// The bytes of a blob: first those that an earlier attempt left on disk, then the download.
struct Chunks {
    partial: Option<PartialBlob>,
    receiver: mpsc::Receiver<Result<Bytes>>,
}

impl Chunks {
    /// Unpacks the blob: a tar, or the content of the file `name`. Blocks.
    fn unpack(
        mut self,
        unpacker: &Unpacker,
        target: &Path,
        name: Option<&Path>,
    ) -> Result<Unpacked> {
        let unpacked = match name {
            None => unpacker.unpack(&mut self, target),
            Some(name) => unpack::unpack_file(&mut self, target, name),
        };
        // Keep the bytes only if the registry became unavailable. After a success nobody needs
        // them, and after any other failure they may be the reason for it.
        let is_resumable =
            matches!(&unpacked, Err(error) if error.kind == Kind::RegistryUnavailable);
        if let Some(partial) = self.partial.as_mut().filter(|_| !is_resumable) {
            partial.discard();
        }
        unpacked
    }
}

impl Source for Chunks {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(partial) = &mut self.partial
            && let Some(chunk) = partial.read().context("read what an earlier pull left")?
        {
            return Ok(Some(chunk));
        }
        let chunk = self.receiver.blocking_recv().transpose()?;
        if let (Some(partial), Some(chunk)) = (&mut self.partial, &chunk) {
            partial.append(chunk);
        }
        Ok(chunk)
    }
}
