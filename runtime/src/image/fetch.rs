//! One layer's way onto the disk: where its bytes come from, who unpacks them, and the proof that they are what was promised.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared, join, join_all};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use tokio::sync::{Semaphore, mpsc};

use super::{
    archive::Archive,
    blocking,
    download::{self, Download, Limits},
    layers::{Layers, Lease, Usage},
    manifest::digest_of,
    reference::Digest,
    registry::Registry,
    store,
    unfinished::{Part, Unfinished},
    unpack::{self, Source, Unpacked},
};
use crate::{
    config,
    error::{Error, Kind, Result},
    telemetry::{METRICS, step},
};

/// overlayfs takes 500 lower directories, images are held to what Docker's builders make.
const MAX_LAYERS: usize = 127;

/// A layer that landed, or why it did not. Everyone who waits shares it.
pub(super) type Layer = Shared<BoxFuture<'static, Result<Arc<Lease>>>>;

/// What a manifest and a config say of one layer.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// What it is called where it is the file of an artifact, and no layer.
    pub file: Option<PathBuf>,
    pub diff_id: Digest,
    /// By diff-id, by chain-id.
    pub keys: [String; 2],
}

/// The layers of an image, bottom first; `files` has a name for each blob that is a file.
///
/// # Errors
/// `FailedPrecondition` for documents that do not fit each other, and for too many layers.
pub(super) fn wanted(
    manifest: &ImageManifest,
    config: &ImageConfiguration,
    files: Vec<Option<PathBuf>>,
) -> Result<Vec<Wanted>> {
    let (blobs, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
    if blobs.len() != diff_ids.len() {
        let told = format!("the manifest has {} layers and the config {}", blobs.len(), diff_ids.len());
        return Err(Error::precondition(told));
    }
    if blobs.len() > MAX_LAYERS {
        return Err(Error::precondition(format!("{} layers; {MAX_LAYERS} is the limit", blobs.len())));
    }
    let layers = blobs.iter().zip(files).zip(diff_ids).zip(store::keys(config)?);
    layers
        .map(|(((blob, file), diff_id), keys)| {
            Ok(Wanted { blob: digest_of(blob)?, size: blob.size(), file, diff_id: Digest::parse(diff_id)?, keys })
        })
        .collect()
}

/// Where blobs come from.
#[derive(Clone)]
pub(super) enum Origin {
    Registry(Arc<Registry>),
    Archive(Arc<Archive>),
}

impl Origin {
    /// A small blob, checked.
    pub(super) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self {
            Self::Registry(registry) => registry.document(digest).await,
            Self::Archive(archive) => {
                let (archive, digest) = (archive.clone(), digest.clone());
                blocking(move || archive.by_digest(&digest)).await
            }
        }
    }
}

/// What the pulls of this node share.
#[derive(Debug)]
pub(super) struct Fetcher {
    layers: Arc<Layers>,
    unfinished: Arc<Unfinished>,
    limits: Arc<Limits>,
    /// Layers that are downloaded at once: the next ones' bytes are there when a thread is.
    connections: Semaphore,
    /// Layers that are unpacked at once.
    slots: Semaphore,
}

impl Fetcher {
    pub(super) fn new(layers: Arc<Layers>, unfinished: Arc<Unfinished>, config: &config::Registry) -> Self {
        // Each takes two threads; more than the cores only take turns.
        let slots = std::thread::available_parallelism().map_or(2, usize::from).clamp(3, 8);
        let limits = Arc::new(Limits::new(Duration::from_secs(config.stall_seconds.get())));
        Self { layers, unfinished, limits, connections: Semaphore::new(2 * slots), slots: Semaphore::new(slots) }
    }

    /// A layer, from the disk if it is there; `below` are the ones under it.
    pub(super) async fn fetch(&self, origin: &Origin, wanted: &Wanted, below: Vec<Layer>) -> Result<Arc<Lease>> {
        let present = wanted.keys.iter().find_map(|key| self.layers.lease(std::slice::from_ref(key)));
        if let Some(lease) = present {
            METRICS.layer("reused");
            return Ok(Arc::new(lease));
        }
        METRICS.layer("pulled");
        let prepared = self.layers.prepare()?;
        let landed = step("pull_image", "layer", self.land(origin, wanted, below, &prepared)).await;
        let landed = landed.map_err(|error| error.during(format!("layer {}", wanted.blob)));
        if landed.is_err() {
            Layers::abandon(&prepared).await;
        }
        landed.map(Arc::new)
    }

    async fn land(&self, origin: &Origin, wanted: &Wanted, below: Vec<Layer>, prepared: &Path) -> Result<Lease> {
        let unpacked = {
            let _connection = self.connections.acquire().await.context("connections are never closed")?;
            self.unpack(origin, wanted, prepared).await?
        };
        for (what, expected, actual) in
            [("digest", &wanted.blob, &unpacked.blob), ("diff-id", &wanted.diff_id, &unpacked.diff_id)]
        {
            if expected != actual {
                return Err(Error::new(Kind::Internal, format!("wrong {what}: expected {expected}, got {actual}")));
            }
        }
        let [by_diff, by_chain] = &wanted.keys;
        let key = if unpacked.implied.is_empty() { by_diff } else { by_chain };
        if !unpacked.implied.is_empty() {
            // Held, so that they can be read.
            let below: Vec<Arc<Lease>> = join_all(below).await.into_iter().collect::<Result<_>>()?;
            let directories: Vec<PathBuf> = below.iter().rev().flat_map(|lease| lease.files()).collect();
            let (own, implied) = (prepared.join(unpack::FILES), unpacked.implied);
            blocking(move || Ok(inherit(&own, &implied, &directories)?)).await?;
        }
        let (layers, prepared, key) = (self.layers.clone(), prepared.to_owned(), key.clone());
        let usage = Usage { bytes: unpacked.bytes, inodes: unpacked.inodes };
        blocking(move || Ok(layers.commit(&prepared, &key, usage)?)).await
    }

    /// Downloads and unpacks at once.
    async fn unpack(&self, origin: &Origin, wanted: &Wanted, prepared: &Path) -> Result<Unpacked> {
        let target = prepared.to_owned();
        let registry = match origin {
            Origin::Registry(registry) => registry,
            Origin::Archive(archive) => {
                let mut blob = archive.blob(&wanted.blob)?;
                let _slot = self.slots.acquire().await.context("slots are never closed")?;
                return blocking(move || unpack::unpack(&mut blob, &target)).await;
            }
        };
        let part = self.unfinished.part(&wanted.blob, wanted.size);
        let start = part.as_ref().map_or(0, |part| part.length);
        let (registry, blob, limits) = (registry.clone(), wanted.blob.clone(), self.limits.clone());
        let download = Download { registry, blob, size: wanted.size, limits };
        let (sender, receiver) = mpsc::channel(download::CHUNKS);
        let file = wanted.file.clone();
        let unpack = move || {
            let mut chunks = Chunks { part, receiver };
            let unpacked = match file {
                None => unpack::unpack(&mut chunks, &target),
                Some(name) => unpack::unpack_file(&mut chunks, &target, &name),
            };
            let another_attempt_may_use_it = matches!(&unpacked, Err(error) if error.kind == Kind::RegistryUnavailable);
            if let Some(part) = chunks.part.as_mut().filter(|_| !another_attempt_may_use_it) {
                part.discard();
            }
            unpacked
        };
        let unpacking = async {
            let _slot = self.slots.acquire().await.context("slots are never closed")?;
            blocking(unpack).await
        };
        join(download.send(start, sender), unpacking).await.1
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
