//! A push, from tags to a repository of a registry:
//!
//! ```text
//! tag -> image -> every layer at once (`layer`): there, mounted, or sent
//!                 tar-split -> tar -> compressed (`compress`) -> blob
//!              -> config -> manifest (`manifest`) -> name by digest in the store
//! ```

mod blob;
mod compress;
mod layer;
mod manifest;
mod report;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use berth_base::{
    config::PushCompression,
    error::{Error, Result},
    observe::{step, step_blocking, steps::push_image},
};
use futures_util::future::try_join_all;
use tokio::sync::{Semaphore, mpsc};

pub use self::report::{LayerPush, PushReport};
use self::{
    blob::{Blob, KnownBlob, known_blobs},
    layer::{Destination, LayerSource, Slots, mounts},
    manifest::{has_blobs, manifest},
    report::reports,
};
use crate::{
    compression::Compression,
    credentials::Credentials,
    digest::Digest,
    manifest::Manifest,
    options::Options,
    reference::Reference,
    registry::{Clients, Target},
    store::{Image, Lease, Nameless, NewImage, Store},
    unblock::unblock,
};

/// How many layers are sent at once, by all pushes. docker has as many.
const UPLOADS: usize = 5;

/// Pushes images of a store.
#[derive(Debug)]
pub(super) struct Pusher {
    store: Arc<Store>,
    registry_config: PathBuf,
    clients: Arc<Clients>,
    compression: Compression,
    slots: Slots,
}

/// A push that has reached its registry.
#[derive(Debug)]
pub struct Push {
    pusher: Arc<Pusher>,
    reference: Reference,
    images: Vec<TaggedImage>,
    destination: Destination,
    /// The registry's answer, which may be a challenge.
    greeting: reqwest::Response,
    /// What is in the repository by now, by diff-id.
    done: Mutex<HashMap<Digest, Blob>>,
}

/// An image to push, and the tag that it gets.
#[derive(Debug)]
struct TaggedImage {
    tag: String,
    image: Arc<Image>,
    /// Bottom first.
    layers: Vec<LayerSource>,
    _lease: Lease,
}

impl Pusher {
    pub(super) fn new(store: Arc<Store>, clients: Arc<Clients>, options: &Options) -> Self {
        Self {
            store,
            registry_config: options.registry_config.clone(),
            clients,
            compression: match options.push_compression {
                PushCompression::Gzip => Compression::Gzip,
                PushCompression::Zstd => Compression::Zstd,
            },
            slots: Arc::new(Semaphore::new(UPLOADS)),
        }
    }

    /// Reaches the registry. Nothing is sent before `Push::run`, whose reports come out of the other
    /// end of the channel.
    ///
    /// # Errors
    /// `RegistryUnavailable` if the registry is not there, `FailedPrecondition` for a damaged layer.
    pub(super) async fn open(
        self: Arc<Self>,
        reference: Reference,
        images: Vec<(String, Arc<Image>)>,
        credentials: Credentials,
    ) -> Result<(Push, mpsc::Receiver<PushReport>)> {
        let store = self.store.clone();
        let images = unblock(move || {
            images.into_iter().map(|(tag, image)| TaggedImage::new(&store, tag, image)).collect()
        });
        let images: Vec<TaggedImage> = images.await?;
        let repository = reference.name();
        let known = images.iter().flat_map(|image| &image.layers);
        let from: BTreeSet<String> = known
            .flat_map(|layer| mounts(&repository, &layer.known))
            .map(|(from, _)| from.to_owned())
            .collect();
        let from: Vec<String> = from.into_iter().take(UPLOADS).collect();
        let clients = self.clients.clone();
        let opening = Target::open(&self.registry_config, clients, &reference, credentials, &from);
        let (target, greeting) = opening.await?;
        let (reports, receiver) = reports();
        let compression = self.compression;
        let destination = Destination { target, repository, compression, reports };
        let done = Mutex::default();
        Ok((Push { pusher: self, reference, images, destination, greeting, done }, receiver))
    }
}

impl TaggedImage {
    fn new(store: &Store, tag: String, image: Arc<Image>) -> Result<Self> {
        let lease = store.layers.lease(&image.layers).ok_or_else(|| {
            Error::precondition(format!(
                "{}: a layer is damaged: `berthd images check --repair` pulls it again",
                image.id
            ))
        })?;
        let mut known: HashMap<Digest, Vec<KnownBlob>> = known_blobs(store, &image);
        let source = |(diff_id, key)| LayerSource {
            known: known.remove(&diff_id).unwrap_or_default(),
            directory: store.layers.directory(&key),
            diff_id,
        };
        let layers = image.layers_by_diff_id()?.into_iter().map(source).collect();
        Ok(Self { tag, image, layers, _lease: lease })
    }
}

impl Push {
    /// Pushes one tag after the other. Dropping this ends it.
    ///
    /// # Errors
    /// What the registry says, in its own words; `RegistryUnavailable` if it cannot be reached any
    /// more; `FailedPrecondition` if a layer cannot be read.
    pub async fn run(self) -> Result<()> {
        for tagged in &self.images {
            for layer in tagged.layers.iter().rev() {
                let reports = &self.destination.reports;
                reports.layer(&layer.diff_id, LayerPush::Preparing).await;
            }
            self.destination.target.authorize(&self.greeting).await?;
            self.push_tag(tagged).await?;
        }
        Ok(())
    }

    async fn push_tag(&self, tagged: &TaggedImage) -> Result<()> {
        let mut seen = BTreeSet::new();
        // The topmost first, as docker does. An image may have a layer twice.
        let layers = tagged.layers.iter().rev().filter(|layer| seen.insert(&layer.diff_id));
        try_join_all(layers.map(|layer| self.push_layer(layer))).await?;
        let blobs = self.blobs(tagged)?;
        let (store, image) = (self.pusher.store.clone(), tagged.image.clone());
        let prepared = unblock(move || documents(&store, &image, &blobs));
        let Documents { config, media_type, manifest } = prepared.await?;
        let target = &self.destination.target;
        let config_put = target.put_document(&tagged.image.id, config.clone());
        step(push_image::CONFIG, config_put).await?;
        let manifest_put = target.put_manifest(&tagged.tag, &media_type, manifest.clone());
        step(push_image::MANIFEST, manifest_put).await?;
        let digest = Digest::sha256(&manifest);
        let report = PushReport::Tag { tag: tagged.tag.clone(), digest, size: manifest.len() };
        self.name(&tagged.image, config, (media_type, manifest)).await?;
        self.destination.reports.send(report).await;
        Ok(())
    }

    async fn push_layer(&self, layer: &LayerSource) -> Result<()> {
        let known = self.done().contains_key(&layer.diff_id);
        if known {
            self.destination.reports.layer(&layer.diff_id, LayerPush::Present).await;
            return Ok(());
        }
        let slots = &self.pusher.slots;
        let _slot = match slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                self.destination.reports.layer(&layer.diff_id, LayerPush::Waiting).await;
                slots.acquire().await.context("the semaphore is never closed")?
            }
        };
        let blob = step(push_image::LAYER, self.destination.push_layer(layer)).await?;
        self.done().insert(layer.diff_id.clone(), blob);
        Ok(())
    }

    fn done(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Blob>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blobs of an image whose layers are there, the lowest first.
    fn blobs(&self, tagged: &TaggedImage) -> Result<Vec<Blob>> {
        let done = self.done();
        let blobs = tagged.layers.iter().map(|layer| done.get(&layer.diff_id).cloned());
        Ok(blobs.collect::<Option<_>>().context("a layer was not pushed")?)
    }

    /// Gives the image the name that it has by digest from now on.
    async fn name(
        &self,
        image: &Arc<Image>,
        config_bytes: Vec<u8>,
        (media_type, bytes): (String, Vec<u8>),
    ) -> Result<()> {
        let manifest = Manifest::parse(Digest::sha256(&bytes), &media_type, bytes)?;
        let names = [self.reference.repo_digest(&manifest.top)];
        let (store, image) = (self.pusher.store.clone(), image.clone());
        unblock(move || {
            // It may have been removed meanwhile, and is not brought back.
            if store.by_id(image.id.as_str())?.is_none() {
                return Ok(());
            }
            let new = NewImage {
                names: &names,
                manifest: &manifest,
                config: image.config.clone(),
                config_bytes: &config_bytes,
                displaced: Nameless::Kept,
                origin: store.origin(&image.id),
            };
            step_blocking(push_image::NAME, || store.add(new)).map(drop)
        })
        .await?;
        self.pusher.store.make_durable_later();
        Ok(())
    }
}

/// What goes to the registry beside the layers.
struct Documents {
    config: Vec<u8>,
    media_type: String,
    manifest: Vec<u8>,
}

/// The documents of an image with these blobs. A manifest that the image was pulled with stays as it
/// is, so that its digest, and signatures of that, are good there as well. Blocks.
fn documents(store: &Store, image: &Image, blobs: &[Blob]) -> Result<Documents> {
    let config = store.blob(&image.id)?;
    for descriptor in store.manifests_of(&image.id) {
        let Ok(own) = store.blob(&crate::manifest::digest_of(&descriptor)?) else { continue };
        if has_blobs(&own, blobs) {
            let media_type = descriptor.media_type().to_string();
            return Ok(Documents { config, media_type, manifest: own });
        }
    }
    let (media_type, manifest) = manifest((&image.id, config.len() as u64), blobs);
    Ok(Documents { config, media_type: media_type.to_owned(), manifest })
}
