//! A pull, or an import: name -> manifest -> config and every missing layer at once -> image under its names.

use std::{
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::join_all};
use oci_spec::image::ImageConfiguration;

use super::{
    archive::Archive,
    artifact::{self, Artifact},
    auth::Credentials,
    blocking,
    client::Clients,
    fetch::{self, Fetcher, Layer, Origin, Wanted},
    layers::Lease,
    manifest::{self, Manifest, digest, digest_of},
    reference::{Digest, Reference},
    registry::Registry,
    store::{Image, Store},
    trust,
    unfinished::{Attempt, Unfinished},
};
use crate::{
    config,
    error::{Error, Kind, Result},
    index::Flights,
    telemetry::{METRICS, step},
};

/// Between two lines in the log that say how far a pull is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Pulls images into a store.
#[derive(Clone)]
pub(crate) struct Puller {
    store: Arc<Store>,
    config: config::Registry,
    clients: Arc<Clients>,
    images: Flights<(String, Credentials), Digest>,
    layers: Flights<String, Arc<Lease>>,
    unfinished: Arc<Unfinished>,
    fetcher: Arc<Fetcher>,
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, unfinished: Arc<Unfinished>, config: &config::Registry) -> Self {
        Self {
            fetcher: Arc::new(Fetcher::new(store.layers.clone(), unfinished.clone(), config)),
            store,
            config: config.clone(),
            clients: Arc::default(),
            images: Flights::default(),
            layers: Flights::default(),
            unfinished,
        }
    }

    /// Pulls `reference` and returns the image's id. A caller that goes away changes nothing: who asks again joins.
    pub(crate) async fn pull(&self, reference: Reference, credentials: Credentials) -> Result<Digest> {
        let key = (reference.to_string(), credentials.clone());
        let own = self.clone();
        let pull = async move {
            let begun = Instant::now();
            let pulled = own.pull_once(&reference, credentials).await;
            METRICS.pull(begun.elapsed(), pulled.is_ok());
            pulled
        };
        self.images.join(key, pull).await
    }

    async fn pull_once(&self, reference: &Reference, credentials: Credentials) -> Result<Digest> {
        let begun = Instant::now();
        let (own, name) = (self.clone(), reference.clone());
        let open = move || Registry::open(&own.config.config_path, &own.clients, &name, credentials);
        let registry = Arc::new(blocking(open).await?);
        let during = |error: Error| error.during(format!("pull {reference}"));
        if let Some(image) = self.unchanged(&registry, reference).await.map_err(during)? {
            image.layers.iter().for_each(|_| METRICS.layer("reused"));
            tracing::info!(image = %reference, id = %image.id, ms = begun.elapsed().as_millis() as u64, "is up to date");
            return Ok(image.id.clone());
        }
        let manifest = self.find_manifest(&registry, reference);
        let found = step("pull_image", "manifest", manifest).await.map_err(during)?;
        let names: Vec<String> = reference.repo_tag().into_iter().chain([reference.repo_digest(&found.top)]).collect();
        self.check_trust(&registry, reference, &found.top, &digest_of(&found.descriptor)?).await.map_err(during)?;
        let origin = Origin::Registry(registry.clone());
        let (found, made) = match artifact::of(&found).map_err(during)? {
            None => (found, None),
            Some((manifest, made)) => (manifest, Some(made)),
        };
        let landing = self.land(&origin, &found, made, Some(reference));
        let landed = step("pull_image", "layers", told(reference, &registry, landing)).await.map_err(during)?;
        let image = step("pull_image", "add", self.add(found, landed, names)).await.map_err(during)?;
        let received = registry.progress.received.load(Ordering::Relaxed);
        tracing::info!(image = %reference, id = %image.id, layers = image.layers.len(), bytes = image.size, received, ms = begun.elapsed().as_millis() as u64, "pulled");
        Ok(image.id.clone())
    }

    /// What `reference` names here, if that is what the registry means by it too.
    async fn unchanged(&self, registry: &Registry, reference: &Reference) -> Result<Option<Arc<Image>>> {
        let by_digest = reference.digest.as_ref().map(|digest| reference.repo_digest(digest));
        let Some(image) = reference.repo_tag().or(by_digest).and_then(|name| self.store.by_name(&name)) else {
            return Ok(None);
        };
        let head = registry.digest(reference.target());
        let Some(top) = step("pull_image", "head", head).await? else { return Ok(None) };
        let Some((known, manifest)) = self.store.named(&reference.repo_digest(&top)) else { return Ok(None) };
        let store = self.store.clone();
        if known.id != image.id || !blocking(move || Ok(store.is_whole(&known))).await? {
            return Ok(None);
        }
        self.check_trust(registry, reference, &top, &manifest).await?;
        Ok(Some(image))
    }

    /// Whether the policy, if there is one, lets in what is signed under one of these digests.
    async fn check_trust(&self, registry: &Registry, reference: &Reference, top: &Digest, own: &Digest) -> Result<()> {
        let Some(policy) = &self.config.signature_policy else { return Ok(()) };
        let digests = if own == top { vec![top] } else { vec![top, own] };
        trust::check(policy, registry, reference, &digests).await
    }

    /// Adds what is in the archive at `path`, once all of it is on the disk: of every image its id and its names.
    pub(crate) async fn import(&self, path: PathBuf, name: Option<Reference>) -> Result<Vec<(Digest, Vec<String>)>> {
        let directory = self.store.layers.scratch();
        let (archive, images) = blocking(move || {
            let mut archive = Archive::open(&path, &directory)?;
            let images = archive.images(name)?;
            Ok((Arc::new(archive), images))
        })
        .await?;
        let origin = Origin::Archive(archive);
        let mut landed = Vec::new();
        for packed in images {
            landed.push((self.land(&origin, &packed.manifest, None, None).await?, packed));
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
    async fn land(
        &self,
        origin: &Origin,
        found: &Manifest,
        made: Option<Artifact>,
        reference: Option<&Reference>,
    ) -> Result<Landed> {
        let digest = digest_of(found.manifest.config())?;
        let (config, files) = match made {
            Some(Artifact { config, files }) => (config, files.into_iter().map(Some).collect()),
            None => (origin.document(&digest).await?, vec![None; found.manifest.layers().len()]),
        };
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|error| Error::precondition(format!("config {digest} is not an image's: {error}")))?;
        let wanted = fetch::wanted(&found.manifest, &parsed, files)?;
        let attempt = reference.map(|name| self.unfinished.begin(&name.to_string(), &wanted)).transpose()?;
        let (mut leases, mut failed) = (Vec::new(), None);
        for landed in self.pull_layers(origin, wanted).await {
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

    /// Every layer at once; one that another pull fetches is waited for.
    async fn pull_layers(&self, origin: &Origin, wanted: Vec<Wanted>) -> Vec<Result<Arc<Lease>>> {
        let mut layers: Vec<Layer> = Vec::new();
        for wanted in wanted {
            let [_, chain] = wanted.keys.clone();
            let (flights, fetcher, origin, below) =
                (self.layers.clone(), self.fetcher.clone(), origin.clone(), layers.clone());
            let fetching =
                async move { flights.join(chain, async move { fetcher.fetch(&origin, &wanted, below).await }).await };
            layers.push(fetching.boxed().shared());
        }
        join_all(layers).await
    }
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

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("config", &self.config).finish_non_exhaustive()
    }
}
