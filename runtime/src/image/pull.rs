//! A pull, or an import: name -> manifest -> config and every missing layer at once -> image under its names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
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
    manifest::{self, Manifest, digest, digest_of},
    reference::{Digest, Reference},
    registry::{Registry, unavailable},
    store::{self, Image, Lease, Store, Usage},
    unpack::{self, Source, Unpacked},
};
use crate::{
    error::{Error, Kind, Result},
    index::Flights,
};

/// overlayfs takes 500 lower directories, images are held to what Docker's builders make.
const MAX_LAYERS: usize = 127;
/// Chunks between the network and the inflating thread; reqwest hands out 8 to 64 KiB each.
const CHUNKS: usize = 16;
/// Breaks of a download in a row, without a byte in between, before it counts as failed.
const MAX_BREAKS: u32 = 3;

/// A layer that landed, or why it did not. Everyone who waits shares it.
type Layer = Shared<BoxFuture<'static, Result<Arc<Lease>>>>;

/// Pulls images into a store.
#[derive(Clone)]
pub(crate) struct Puller {
    store: Arc<Store>,
    config_path: PathBuf,
    images: Flights<(String, Credentials), Digest>,
    layers: Flights<String, Arc<Lease>>,
    /// Layers that are downloaded and unpacked at once.
    slots: Arc<Semaphore>,
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, config_path: PathBuf) -> Self {
        // Each takes two threads; more than the cores only take turns.
        let slots = std::thread::available_parallelism().map_or(2, usize::from).clamp(3, 8);
        Self {
            store,
            config_path,
            images: Flights::default(),
            layers: Flights::default(),
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
        let registry = Arc::new(Registry::open(&self.config_path, reference, credentials)?);
        let during = |error: Error| error.during(format!("pull {reference}"));
        let found = self.find_manifest(&registry, reference).await.map_err(during)?;
        let names = reference.repo_tag().into_iter().chain([reference.repo_digest(&found.top)]).collect();
        let landed = self.land(&Origin::Registry(registry), &found).await.map_err(during)?;
        let image = self.add(found, landed, names).await.map_err(during)?;
        tracing::info!(image = %reference, id = %image.id, layers = image.layers.len(), bytes = image.size, ms = begun.elapsed().as_millis() as u64, "pulled");
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
            landed.push((self.land(&origin, &packed.manifest).await?, packed));
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

    /// Brings what `found` names onto the disk.
    async fn land(&self, origin: &Origin, found: &Manifest) -> Result<Landed> {
        let digest = digest_of(found.manifest.config())?;
        let config = origin.document(&digest).await?;
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|error| Error::precondition(format!("config {digest} is not an image's: {error}")))?;
        let leases = self.pull_layers(origin, &found.manifest, &parsed).await?;
        Ok(Landed { config, _leases: leases })
    }

    /// Makes what has landed an image.
    async fn add(&self, found: Manifest, landed: Landed, names: Vec<String>) -> Result<Arc<Image>> {
        let store = self.store.clone();
        let image = blocking(move || store.add(&names, (&found.descriptor, &found.bytes), &landed.config)).await?;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            store.make_durable().inspect_err(|error| tracing::warn!("make images durable: {error:#}"))
        });
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
    ) -> Result<Vec<Arc<Lease>>> {
        let (blobs, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
        if blobs.len() != diff_ids.len() {
            return Err(Error::precondition(format!(
                "the manifest has {} layers and the config {}",
                blobs.len(),
                diff_ids.len()
            )));
        }
        if blobs.len() > MAX_LAYERS {
            return Err(Error::precondition(format!("{} layers; {MAX_LAYERS} is the limit", blobs.len())));
        }
        let mut layers: Vec<Layer> = Vec::new();
        for ((blob, keys), diff_id) in blobs.iter().zip(store::keys(config)?).zip(diff_ids) {
            let task = LayerTask {
                store: self.store.clone(),
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
        join_all(layers).await.into_iter().collect()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| anyhow!("work ended early: {error}"))?
}

/// An image without a name.
struct Landed {
    config: Vec<u8>,
    /// Held until the image itself holds its layers.
    _leases: Vec<Arc<Lease>>,
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
            let (own, implied) = (prepared.join(store::FILES), unpacked.implied);
            blocking(move || Ok(inherit(&own, &implied, &directories)?)).await?;
        }
        let (store, prepared, key) = (self.store.clone(), prepared.to_owned(), key.clone());
        let usage = Usage { bytes: unpacked.bytes, inodes: unpacked.inodes };
        blocking(move || Ok(store.commit(&prepared, &key, usage)?)).await
    }

    /// Downloads and unpacks at once.
    async fn fetch(&self, prepared: &Path) -> Result<Unpacked> {
        let target = prepared.join(store::FILES);
        let registry = match &self.origin {
            Origin::Registry(registry) => registry,
            Origin::Archive(archive) => {
                let mut blob = archive.blob(&self.blob)?;
                return blocking(move || unpack::unpack(&mut blob, &target)).await;
            }
        };
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(&mut Chunks { receiver }, &target));
        self.download(registry, sender).await;
        unpacking.await.map_err(|error| anyhow!("unpacking ended early: {error}"))?
    }

    /// Sends the blob's bytes, or the error that ended them. After a break it goes on where it was.
    async fn download(&self, registry: &Registry, sender: mpsc::Sender<Result<Bytes>>) {
        let mut received = 0;
        let mut breaks = 0;
        while received < self.size {
            let before = received;
            let broken = match self.download_from(registry, &mut received, &sender).await {
                Ok(()) if received == self.size => return,
                Ok(()) if sender.is_closed() => return,
                Ok(()) => unavailable(format!("truncated: {received} of {} bytes", self.size)),
                Err(error) => error,
            };
            breaks = if received > before { 0 } else { breaks + 1 };
            if broken.kind != Kind::Unavailable || received > self.size || breaks == MAX_BREAKS {
                let _ = sender.send(Err(broken)).await;
                return;
            }
            tracing::info!(blob = %self.blob, received, size = self.size, error = %broken, "download broke, resuming");
        }
    }

    async fn download_from(
        &self,
        registry: &Registry,
        received: &mut u64,
        sender: &mpsc::Sender<Result<Bytes>>,
    ) -> Result<()> {
        let mut response = registry.blob(&self.blob, *received).await?;
        while let Some(chunk) =
            response.chunk().await.map_err(|error| unavailable(super::registry::root_cause(&error)))?
        {
            *received += chunk.len() as u64;
            if *received > self.size {
                return Err(Error::new(
                    Kind::Internal,
                    format!("the blob is longer than the {} bytes of its descriptor", self.size),
                ));
            }
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

struct Chunks {
    receiver: mpsc::Receiver<Result<Bytes>>,
}

impl Source for Chunks {
    fn next(&mut self) -> Result<Option<Bytes>> {
        self.receiver.blocking_recv().transpose()
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
        f.debug_struct("Puller").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}
