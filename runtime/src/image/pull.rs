//! A pull, or an import: name -> manifest -> config and every missing layer at once -> image under its names.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use tokio::sync::{Semaphore, mpsc};

use super::{
    archive::Archive,
    auth::Credentials,
    blocking,
    download::{self, Download, Limits},
    manifest::{self, Manifest, digest, digest_of},
    reference::{Digest, Reference},
    registry::Registry,
    store::{self, Image, Lease, Store, Usage},
    trust,
    unfinished::{Attempt, Part, Unfinished},
    unpack::{self, Source, Unpacked},
};
use crate::{
    config,
    error::{Error, Kind, Result},
    index::Flights,
};

/// overlayfs takes 500 lower directories, images are held to what Docker's builders make.
const MAX_LAYERS: usize = 127;
/// Between two lines in the log that say how far a pull is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A layer that landed, or why it did not. Everyone who waits shares it.
type Layer = Shared<BoxFuture<'static, Result<Arc<Lease>>>>;

/// Pulls images into a store.
#[derive(Clone)]
pub(crate) struct Puller {
    store: Arc<Store>,
    config: config::Registry,
    images: Flights<(String, Credentials), Digest>,
    layers: Flights<String, Arc<Lease>>,
    unfinished: Arc<Unfinished>,
    limits: Arc<Limits>,
    /// Layers that are downloaded and unpacked at once.
    slots: Arc<Semaphore>,
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, unfinished: Arc<Unfinished>, config: &config::Registry) -> Self {
        // Each takes two threads; more than the cores only take turns.
        let slots = std::thread::available_parallelism().map_or(2, usize::from).clamp(3, 8);
        Self {
            store,
            config: config.clone(),
            images: Flights::default(),
            layers: Flights::default(),
            unfinished,
            limits: Arc::new(Limits::new(Duration::from_secs(config.stall_seconds.get()))),
            slots: Arc::new(Semaphore::new(slots)),
        }
    }

    /// Pulls `reference` and returns the image's id. A caller that goes away changes nothing: who asks again joins.
    pub(crate) async fn pull(&self, reference: Reference, credentials: Credentials) -> Result<Digest> {
        let key = (reference.to_string(), credentials.clone());
        let own = self.clone();
        self.images.join(key, async move { own.pull_once(&reference, credentials).await }).await
    }

    async fn pull_once(&self, reference: &Reference, credentials: Credentials) -> Result<Digest> {
        let begun = Instant::now();
        let registry = Arc::new(Registry::open(&self.config.config_path, reference, credentials)?);
        let during = |error: Error| error.during(format!("pull {reference}"));
        let found = self.find_manifest(&registry, reference).await.map_err(during)?;
        let names: Vec<String> = reference.repo_tag().into_iter().chain([reference.repo_digest(&found.top)]).collect();
        if let Some(policy) = &self.config.signature_policy {
            let own = digest_of(&found.descriptor)?;
            let digests = if own == found.top { vec![&found.top] } else { vec![&found.top, &own] };
            trust::check(policy, &registry, reference, &digests).await.map_err(during)?;
        }
        let origin = Origin::Registry(registry.clone());
        let landed = told(reference, &registry, self.land(&origin, &found, Some(reference))).await.map_err(during)?;
        let image = self.add(found, landed, names).await.map_err(during)?;
        let received = registry.progress.received.load(Ordering::Relaxed);
        tracing::info!(image = %reference, id = %image.id, layers = image.layers.len(), bytes = image.size, received, ms = begun.elapsed().as_millis() as u64, "pulled");
        Ok(image.id.clone())
    }

    /// Adds what is in the archive at `path`, once all of it is on the disk: of every image its id and its names.
    pub(crate) async fn import(&self, path: PathBuf, name: Option<Reference>) -> Result<Vec<(Digest, Vec<String>)>> {
        let directory = self.store.directory();
        let (archive, images) = blocking(move || {
            let mut archive = Archive::open(&path, &directory)?;
            let images = archive.images(name)?;
            Ok((Arc::new(archive), images))
        })
        .await?;
        let origin = Origin::Archive(archive);
        let mut landed = Vec::new();
        for packed in images {
            landed.push((self.land(&origin, &packed.manifest, None).await?, packed));
        }
        let mut imported = Vec::new();
        for (landed, packed) in landed {
            let (names, all) = (packed.tags(), packed.names());
            let image = self.add(packed.manifest, landed, all).await?;
            tracing::info!(images = ?names, id = %image.id, layers = image.layers.len(), bytes = image.size, "imported");
            imported.push((image.id.clone(), names));
        }
        Ok(imported)
    }

    /// Brings what `found` names onto the disk. What breaks off is kept for the next pull of `reference`.
    async fn land(&self, origin: &Origin, found: &Manifest, reference: Option<&Reference>) -> Result<Landed> {
        let digest = digest_of(found.manifest.config())?;
        let config = origin.document(&digest).await?;
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|error| Error::precondition(format!("config {digest} is not an image's: {error}")))?;
        let blobs = blobs_of(&found.manifest, &parsed)?;
        let keys = store::keys(&parsed)?;
        let attempt = reference.map(|name| self.unfinished.begin(&name.to_string(), &keys, &blobs)).transpose()?;
        let (mut leases, mut failed) = (Vec::new(), None);
        for landed in self.pull_layers(origin, &found.manifest, &parsed, keys).await? {
            match landed {
                Ok(lease) => leases.push(lease),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (failed, attempt) {
            (None, attempt) => Ok(Landed { config, _leases: leases, attempt }),
            (Some(error), Some(attempt)) if error.kind == Kind::RegistryUnavailable => {
                attempt.keep(leases);
                Err(error)
            }
            (Some(error), attempt) => {
                attempt.into_iter().for_each(Attempt::end);
                Err(error)
            }
        }
    }

    /// Makes what has landed an image.
    async fn add(&self, found: Manifest, landed: Landed, names: Vec<String>) -> Result<Arc<Image>> {
        let store = self.store.clone();
        let image = blocking(move || {
            let image = store.add(&names, (&found.descriptor, &found.bytes), &landed.config);
            landed.attempt.into_iter().for_each(Attempt::end);
            image
        })
        .await?;
        self.store.make_durable_later();
        Ok(image)
    }

    /// The manifest for this machine, through an index if there is one.
    async fn find_manifest(&self, registry: &Registry, reference: &Reference) -> Result<Manifest> {
        let (media_type, bytes) = registry.manifest(reference.target()).await?;
        let top = digest(&bytes);
        match manifest::choose_from_index(&bytes)? {
            None => Manifest::parse(top, &media_type, bytes),
            Some(chosen) => {
                let (_, bytes) = registry.manifest(digest_of(&chosen)?.as_str()).await?;
                Manifest::parse(top, chosen.media_type().as_ref(), bytes)
            }
        }
    }

    async fn pull_layers(
        &self,
        origin: &Origin,
        manifest: &ImageManifest,
        config: &ImageConfiguration,
        keys: Vec<[String; 2]>,
    ) -> Result<Vec<Result<Arc<Lease>>>> {
        let mut layers: Vec<Layer> = Vec::new();
        for ((blob, keys), diff_id) in manifest.layers().iter().zip(keys).zip(config.rootfs().diff_ids()) {
            let task = LayerTask {
                store: self.store.clone(),
                unfinished: self.unfinished.clone(),
                limits: self.limits.clone(),
                origin: origin.clone(),
                slots: self.slots.clone(),
                blob: digest_of(blob)?,
                size: blob.size(),
                diff_id: Digest::parse(diff_id)?,
                keys: keys.clone(),
                below: layers.clone(),
            };
            let [_, chain] = keys;
            let flights = self.layers.clone();
            layers.push(async move { flights.join(chain, task.run()).await }.boxed().shared());
        }
        Ok(join_all(layers).await)
    }
}

/// Digests of an image's layers, as the registry has them.
fn blobs_of(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<Digest>> {
    let (blobs, diff_ids) = (manifest.layers().len(), config.rootfs().diff_ids().len());
    if blobs != diff_ids {
        return Err(Error::precondition(format!("the manifest has {blobs} layers and the config {diff_ids}")));
    }
    if blobs > MAX_LAYERS {
        return Err(Error::precondition(format!("{blobs} layers; {MAX_LAYERS} is the limit")));
    }
    manifest.layers().iter().map(digest_of).collect()
}

/// Says now and then how far `work` is.
async fn told<T>(reference: &Reference, registry: &Registry, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(TOLD_EVERY, &mut work).await {
            return done;
        }
        let [received, expected] =
            [&registry.progress.received, &registry.progress.expected].map(|bytes| bytes.load(Ordering::Relaxed));
        tracing::info!(image = %reference, received, expected, "pulling");
    }
}

/// An image without a name.
struct Landed {
    config: Vec<u8>,
    /// Held until the image itself holds its layers.
    _leases: Vec<Arc<Lease>>,
    attempt: Option<Attempt>,
}

/// Where blobs come from.
#[derive(Clone)]
enum Origin {
    Registry(Arc<Registry>),
    Archive(Arc<Archive>),
}

impl Origin {
    /// A small blob, checked.
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self {
            Self::Registry(registry) => registry.document(digest).await,
            Self::Archive(archive) => {
                let (archive, digest) = (archive.clone(), digest.clone());
                blocking(move || archive.by_digest(&digest)).await
            }
        }
    }
}

/// One layer's way onto the disk.
struct LayerTask {
    store: Arc<Store>,
    unfinished: Arc<Unfinished>,
    limits: Arc<Limits>,
    origin: Origin,
    slots: Arc<Semaphore>,
    blob: Digest,
    /// Bytes of the blob.
    size: u64,
    diff_id: Digest,
    /// By diff-id, by chain-id.
    keys: [String; 2],
    below: Vec<Layer>,
}

impl LayerTask {
    async fn run(self) -> Result<Arc<Lease>> {
        let present = self.keys.iter().find_map(|key| self.store.lease(std::slice::from_ref(key)));
        if let Some(lease) = present {
            return Ok(Arc::new(lease));
        }
        let prepared = self.store.prepare()?;
        let landed = self.land(&prepared).await.map_err(|error| error.during(format!("layer {}", self.blob)));
        if landed.is_err() {
            self.store.abandon(&prepared);
        }
        landed.map(Arc::new)
    }

    async fn land(&self, prepared: &Path) -> Result<Lease> {
        let unpacked = {
            let _slot = self.slots.acquire().await.context("slots are never closed")?;
            self.fetch(prepared).await?
        };
        for (what, expected, actual) in
            [("digest", &self.blob, &unpacked.blob), ("diff-id", &self.diff_id, &unpacked.diff_id)]
        {
            if expected != actual {
                return Err(Error::new(Kind::Internal, format!("wrong {what}: expected {expected}, got {actual}")));
            }
        }
        let [by_diff, by_chain] = &self.keys;
        let key = if unpacked.implied.is_empty() { by_diff } else { by_chain };
        if !unpacked.implied.is_empty() {
            // Held, so that they can be read.
            let below: Vec<Arc<Lease>> = join_all(self.below.clone()).await.into_iter().collect::<Result<_>>()?;
            let directories: Vec<PathBuf> = below.iter().rev().flat_map(|lease| lease.files()).collect();
            let (own, implied) = (prepared.join(unpack::FILES), unpacked.implied);
            blocking(move || Ok(inherit(&own, &implied, &directories)?)).await?;
        }
        let (store, prepared, key) = (self.store.clone(), prepared.to_owned(), key.clone());
        let usage = Usage { bytes: unpacked.bytes, inodes: unpacked.inodes };
        blocking(move || Ok(store.commit(&prepared, &key, usage)?)).await
    }

    /// Downloads and unpacks at once.
    async fn fetch(&self, prepared: &Path) -> Result<Unpacked> {
        let target = prepared.to_owned();
        let registry = match &self.origin {
            Origin::Registry(registry) => registry,
            Origin::Archive(archive) => {
                let mut blob = archive.blob(&self.blob)?;
                return blocking(move || unpack::unpack(&mut blob, &target)).await;
            }
        };
        let part = self.unfinished.part(&self.blob, self.size);
        let start = part.as_ref().map_or(0, |part| part.length);
        let (registry, blob, limits) = (registry.clone(), self.blob.clone(), self.limits.clone());
        let download = Download { registry, blob, size: self.size, limits };
        let (sender, receiver) = mpsc::channel(download::CHUNKS);
        let unpacking = tokio::task::spawn_blocking(move || {
            let mut chunks = Chunks { part, receiver };
            let unpacked = unpack::unpack(&mut chunks, &target);
            let another_attempt_may_use_it = matches!(&unpacked, Err(error) if error.kind == Kind::RegistryUnavailable);
            if let Some(part) = chunks.part.as_mut().filter(|_| !another_attempt_may_use_it) {
                part.discard();
            }
            unpacked
        });
        download.send(start, sender).await;
        unpacking.await.map_err(|error| anyhow!("unpacking ended early: {error}"))?
    }
}

/// What an earlier attempt left of a blob, then what comes now.
struct Chunks {
    part: Option<Part>,
    receiver: mpsc::Receiver<Result<Bytes>>,
}

impl Source for Chunks {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let kept = self.part.as_mut().map(Part::read).transpose().context("read what an earlier pull left")?;
        if let Some(chunk) = kept.flatten() {
            return Ok(Some(chunk));
        }
        let chunk = self.receiver.blocking_recv().transpose()?;
        if let (Some(part), Some(chunk)) = (&mut self.part, &chunk) {
            part.append(chunk);
        }
        Ok(chunk)
    }
}

/// Gives directories that a layer's tar left out the owner, mode and time that they have in the topmost layer below with them.
fn inherit(own: &Path, implied: &[PathBuf], below: &[PathBuf]) -> anyhow::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = |root: &Path| {
        rustix::fs::openat(CWD, root, flags, Mode::empty()).with_context(|| format!("open {}", root.display()))
    };
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let own = open(own)?;
    let below = below.iter().map(|root| open(root)).collect::<anyhow::Result<Vec<_>>>()?;
    for path in implied {
        let find = |root| rustix::fs::openat2(root, path, flags, Mode::empty(), inside).ok();
        let Some(source) = below.iter().find_map(find) else { continue };
        let found = rustix::fs::statat(&source, "", AtFlags::EMPTY_PATH).context("stat")?;
        let target = rustix::fs::openat2(&own, path, flags, Mode::empty(), inside)
            .with_context(|| format!("open {}", path.display()))?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(found.st_uid), rustix::fs::Gid::from_raw(found.st_gid));
        rustix::fs::fchown(&target, Some(uid), Some(gid)).context("chown")?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(found.st_mode)).context("chmod")?;
        let time = Timespec { tv_sec: found.st_mtime as i64, tv_nsec: 0 };
        rustix::fs::futimens(&target, &Timestamps { last_access: time, last_modification: time })
            .context("set times")?;
    }
    Ok(())
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("config", &self.config).finish_non_exhaustive()
    }
}
