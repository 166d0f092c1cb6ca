//! Fetches all layers of an image at once, then adds the image to the store. Pulls and imports
//! share this.

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth_base::{
    error::{Error, Kind, Result},
    observe::{step_blocking, steps::pull_image},
    singleflight::SingleFlight,
};
use futures_util::{FutureExt, future::join_all};
use oci_spec::image::ImageConfiguration;

use crate::{
    artifact::Artifact,
    fetch_layer::{BlobSource, LayerFetcher, PendingLayer},
    layer_key::LayerKey,
    manifest::{LayerDescriptor, Manifest, digest_of, layer_descriptors},
    observer::Observer,
    reference::Reference,
    store::{Attempt, Image, Lease, Nameless, NewImage, Origin, ResumeStates, Store},
    unblock::unblock,
};

/// Fetches images into a store.
#[derive(Clone)]
pub(super) struct ImageFetcher {
    store: Arc<Store>,
    resume_states: Arc<ResumeStates>,
    fetcher: Arc<LayerFetcher>,
    /// Layers that are being fetched, by chain key. If several pulls need the same layer, the first
    /// one fetches it and the others wait for that (containerd#4937).
    layers: SingleFlight<LayerKey, Arc<Lease>>,
}

/// An image whose layers are on disk, but which is not in the index yet.
pub(super) struct FetchedLayers {
    config: ImageConfiguration,
    config_bytes: Vec<u8>,
    /// Keep the layers until the image is in the index.
    _leases: Vec<Arc<Lease>>,
    /// `None` for an import, which cannot be resumed.
    attempt: Option<Attempt>,
}

impl ImageFetcher {
    pub(super) fn new(
        store: Arc<Store>,
        resume_states: Arc<ResumeStates>,
        stall: Duration,
        observer: Observer,
    ) -> Self {
        let layers = store.layers.clone();
        let fetcher = LayerFetcher::new(layers, resume_states.clone(), stall, observer);
        Self { store, resume_states, fetcher: Arc::new(fetcher), layers: SingleFlight::default() }
    }

    /// Fetches the layers of `manifest` that are not on disk yet. An OCI artifact has no config in
    /// the registry; `artifact` replaces it. If the registry becomes unavailable, what has been
    /// fetched is kept for the next pull of `reference`.
    ///
    /// # Errors
    /// The error of the lowest layer that failed.
    pub(super) async fn fetch_layers(
        &self,
        source: &BlobSource,
        manifest: &Manifest,
        artifact: Option<Artifact>,
        reference: Option<&Reference>,
    ) -> Result<FetchedLayers> {
        let (config_bytes, files) = config_of(source, manifest, artifact).await?;
        let config: ImageConfiguration =
            serde_json::from_slice(&config_bytes).map_err(|error| {
                let digest = manifest.manifest.config().digest();
                Error::precondition(format!("config {digest} is not an image's: {error}"))
            })?;
        let layers = layer_descriptors(&manifest.manifest, &config, files)?;
        // Written before the first byte arrives, so that the pull can be resumed even if the daemon
        // is killed.
        let attempt = match reference {
            Some(name) => Some(step_blocking(pull_image::RECORD, || {
                self.resume_states.begin(&name.to_string(), &layers)
            })?),
            None => None,
        };
        let mut leases = Vec::new();
        let mut failed = None;
        // Even if one layer fails early, wait for all of them: complete layers are worth keeping.
        for layer in self.fetch_all(source, layers).await {
            match layer {
                Ok(lease) => leases.push(lease),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            None => Ok(FetchedLayers { config, config_bytes, _leases: leases, attempt }),
            Some(error) => {
                match attempt {
                    Some(attempt) if error.kind == Kind::RegistryUnavailable => {
                        attempt.keep(leases);
                    }
                    // Either another attempt would fail in the same way, or this is an import.
                    attempt => attempt.into_iter().for_each(Attempt::end),
                }
                Err(error)
            }
        }
    }

    /// Fetches every layer at once. Each is given the layers below it, from which it takes the
    /// attributes of directories that its own tar leaves out.
    async fn fetch_all(
        &self,
        source: &BlobSource,
        layers: Vec<LayerDescriptor>,
    ) -> Vec<Result<Arc<Lease>>> {
        let mut pending: Vec<PendingLayer> = Vec::new();
        for layer in layers {
            let below = pending.clone();
            pending.push(self.clone().fetch_one(source.clone(), layer, below).boxed().shared());
        }
        join_all(pending).await
    }

    async fn fetch_one(
        self,
        source: BlobSource,
        layer: LayerDescriptor,
        below: Vec<PendingLayer>,
    ) -> Result<Arc<Lease>> {
        // Keyed by chain-id and not by blob, because the files of a layer may depend on the layers
        // below it.
        let key = layer.keys.chain.clone();
        let fetcher = self.fetcher.clone();
        let fetching = async move { fetcher.fetch(&source, &layer, below).await };
        self.layers.join(key, fetching).await
    }

    /// Adds the image to the index under `names`. `displaced` says what becomes of images that lose
    /// their last name by that.
    ///
    /// # Errors
    /// `ResourceExhausted` if the disk is full.
    pub(super) async fn add(
        &self,
        manifest: Manifest,
        fetched: FetchedLayers,
        names: Vec<String>,
        displaced: Nameless,
    ) -> Result<Arc<Image>> {
        let store = self.store.clone();
        let image = unblock(move || {
            let FetchedLayers { config, config_bytes, _leases, attempt } = fetched;
            let new = NewImage {
                names: &names,
                manifest: &manifest,
                config,
                config_bytes: &config_bytes,
                displaced,
                origin: Origin::default(),
            };
            let image = store.add(new);
            // The leases end with this closure, after the image is in the index. At every moment
            // one or the other keeps the layers from being collected.
            step_blocking(pull_image::FORGET, || {
                attempt.into_iter().for_each(Attempt::end);
                Ok::<_, Error>(())
            })?;
            image
        })
        .await?;
        self.store.make_durable_later();
        Ok(image)
    }
}

impl std::fmt::Debug for ImageFetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFetcher").finish_non_exhaustive()
    }
}

/// The bytes of the config and, for each blob, the name of the file if the blob is one.
async fn config_of(
    source: &BlobSource,
    manifest: &Manifest,
    artifact: Option<Artifact>,
) -> Result<(Vec<u8>, Vec<Option<PathBuf>>)> {
    match artifact {
        Some(Artifact { config, files }) => Ok((config, files.into_iter().map(Some).collect())),
        None => {
            let config = source.document(&digest_of(manifest.manifest.config())?).await?;
            Ok((config, vec![None; manifest.manifest.layers().len()]))
        }
    }
}
