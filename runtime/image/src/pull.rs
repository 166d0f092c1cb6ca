//! A pull, from a name to an image:
//!
//! ```text
//! name -> HEAD: is the local image still what the registry has? -> done
//!      -> manifest (through an index) -> signature policy
//!      -> config -> every missing layer at once (`fetch_image`, `fetch_layer`)
//!      -> image under its names (`store`) -> synced later (`store::durability`)
//! ```

use std::{
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use berth_base::{
    error::{Error, Result},
    observe::{step, steps::pull_image},
    singleflight::SingleFlight,
};

use crate::{
    artifact::Artifact,
    credentials::{AuthConfig, Credentials, server_host},
    digest::Digest,
    fetch_image::ImageFetcher,
    fetch_layer::BlobSource,
    manifest::{Manifest, choose_from_index, digest_of},
    observer::Observer,
    options::Options,
    progress::Watched,
    reference::Reference,
    registry::{Clients, Repository, search},
    signature,
    store::{Image, Nameless, Store},
    unblock::unblock,
};

/// Time between two log lines about the progress of a pull.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Pulls images into a store.
#[derive(Clone)]
pub(super) struct Puller {
    store: Arc<Store>,
    fetcher: ImageFetcher,
    registry_config: PathBuf,
    signature_policy: Option<PathBuf>,
    clients: Arc<Clients>,
    /// Pulls in progress. Credentials are part of the key, because a caller without access to an
    /// image must not get it by joining somebody else's pull.
    pulls: SingleFlight<(String, Credentials), Digest>,
    observer: Observer,
}

impl Puller {
    pub(super) fn new(
        store: Arc<Store>,
        fetcher: ImageFetcher,
        clients: Arc<Clients>,
        options: &Options,
        observer: Observer,
    ) -> Self {
        Self {
            store,
            fetcher,
            registry_config: options.registry_config.clone(),
            signature_policy: options.signature_policy.clone(),
            clients,
            pulls: SingleFlight::default(),
            observer,
        }
    }

    /// Pulls `reference` and returns the image's id. The pull goes on if the caller disconnects,
    /// and a caller that asks again joins it; reports are for the first one only.
    ///
    /// # Errors
    /// `NotFound`, `Unauthenticated` and `PermissionDenied` as the registry says;
    /// `RegistryUnavailable` if a later attempt may succeed, for which everything fetched so far is
    /// kept; `FailedPrecondition` if the image cannot be used; `SignatureValidationFailed`.
    pub(super) async fn pull(
        &self,
        reference: Reference,
        credentials: Credentials,
        watched: Watched,
    ) -> Result<Digest> {
        let key = (reference.to_string(), credentials.clone());
        let own = self.clone();
        let pull = async move {
            let begun = Instant::now();
            let pulled = own.pull_once(&reference, credentials, watched).await;
            (own.observer.pull_ended)(begun.elapsed(), pulled.is_ok());
            // A tag that moved may have left an image without a name, and a failed pull layers that
            // belong to no image.
            own.store.collect();
            pulled.map_err(|error| error.during(format!("pull {reference}")))
        };
        self.pulls.join(key, pull).await
    }

    /// The tags of a repository.
    ///
    /// # Errors
    /// As for `pull`.
    pub(super) async fn tags(
        &self,
        repository: &Reference,
        credentials: Credentials,
    ) -> Result<Vec<String>> {
        self.open_repository(repository, credentials).await?.tags().await
    }

    /// Searches the index of a registry for a term, which may begin with the registry's host.
    ///
    /// # Errors
    /// See `registry::search`.
    pub(super) async fn search(&self, term: &str, limit: u32, auth: AuthConfig) -> Result<Vec<u8>> {
        let (host, term) = match Reference::parse(term) {
            Ok(named) if term.starts_with(&format!("{}/", named.host)) => {
                (named.host, named.repository)
            }
            _ => ("docker.io".to_owned(), term.to_owned()),
        };
        let credentials = auth.for_host(&host)?;
        search(self.clients.clone(), &host, &term, limit, &credentials).await
    }

    /// Asks a registry whether it accepts these credentials.
    ///
    /// # Errors
    /// `Unauthenticated` if it does not, `InvalidArgument` if the address is none,
    /// `RegistryUnavailable` if it does not answer.
    pub(super) async fn login(&self, auth: AuthConfig) -> Result<()> {
        let host = match server_host(&auth.server_address) {
            "" => "docker.io",
            host => host,
        };
        // The repository stands for none, and the name is checked as a whole.
        let registry = Reference::parse(&format!("{host}/login"))?;
        if registry.host != host {
            return Err(Error::invalid(format!("{host:?} is not the address of a registry")));
        }
        let credentials = auth.for_host(&registry.host)?;
        self.open_repository(&registry, credentials).await?.login().await
    }

    async fn pull_once(
        &self,
        reference: &Reference,
        credentials: Credentials,
        watched: Watched,
    ) -> Result<Digest> {
        let begun = Instant::now();
        let mut repository = self.open_repository(reference, credentials).await?;
        if let Some(image) = self.unchanged(&repository, reference).await? {
            image.layers.iter().for_each(|_| (self.observer.layer_reused)());
            tracing::info!(
                image = %reference,
                id = %image.id,
                ms = begun.elapsed().as_millis() as u64,
                "is up to date"
            );
            return Ok(image.id.clone());
        }
        let manifest = step(pull_image::MANIFEST, find_manifest(&repository, reference)).await?;
        // Of an image that is here under another name there is nothing to tell.
        if !self.is_here(&digest_of(manifest.manifest.config())?) {
            repository.progress.watched = watched;
        }
        let repository = Arc::new(repository);
        // The digest is a name as well: the kubelet refers to a container's image by it, and the
        // next pull of this tag compares it with what the registry says.
        let mut names: Vec<String> = reference.repo_tag().into_iter().collect();
        names.push(reference.repo_digest(&manifest.top));
        // Before any byte of the image is unpacked.
        self.check_signatures(&repository, reference, &manifest.top, &manifest.digest()?).await?;
        let source = BlobSource::Registry(repository.clone());
        let (manifest, artifact) = Artifact::convert(manifest)?;
        let fetching = self.fetcher.fetch_layers(&source, &manifest, artifact, Some(reference));
        let fetching = log_progress(reference, &repository, fetching);
        let fetched = step(pull_image::LAYERS, fetching).await?;
        let adding = self.fetcher.add(manifest, fetched, names, Nameless::Dropped);
        let image = step(pull_image::ADD, adding).await?;
        tracing::info!(
            image = %reference,
            id = %image.id,
            layers = image.layers.len(),
            bytes = image.size,
            received = repository.progress.received.load(Ordering::Relaxed),
            ms = begun.elapsed().as_millis() as u64,
            "pulled"
        );
        Ok(image.id.clone())
    }

    /// Whether an image is on disk with all of its layers.
    fn is_here(&self, id: &Digest) -> bool {
        let image = self.store.by_id(id.as_str()).ok().flatten();
        image.is_some_and(|image| self.store.layers.lease(&image.layers).is_some())
    }

    async fn open_repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Repository> {
        let clients = self.clients.clone();
        let config = self.registry_config.clone();
        let reference = reference.clone();
        unblock(move || Repository::open(&config, &clients, &reference, credentials)).await
    }

    /// The local image that `reference` names, if the registry still has the same one under it.
    async fn unchanged(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Arc<Image>>> {
        let Some(image) = self.store.by_name(&reference.stored_name()) else {
            return Ok(None);
        };
        // Even for a reference by digest: the registry decides whether these credentials give
        // access to the image.
        let head = repository.resolve(reference.target());
        let Some(top) = step(pull_image::HEAD, head).await? else { return Ok(None) };
        let Some((known, manifest)) = self.store.named(&reference.repo_digest(&top)) else {
            return Ok(None);
        };
        // The tag has moved to another image that is here as well. Pulling gives it the tag.
        if known.id != image.id {
            return Ok(None);
        }
        // Reads and verifies the documents. Layers that are marked as damaged, or were not synced
        // before a reboot, count as missing, so that a pull heals the image.
        let store = self.store.clone();
        if !unblock(move || Ok(store.is_complete(&known))).await? {
            return Ok(None);
        }
        // The policy may have changed since the image was pulled.
        self.check_signatures(repository, reference, &top, &manifest).await?;
        Ok(Some(image))
    }

    /// Checks the signature policy, if there is one. A signature of either digest counts.
    async fn check_signatures(
        &self,
        repository: &Repository,
        reference: &Reference,
        top: &Digest,
        manifest: &Digest,
    ) -> Result<()> {
        let Some(policy) = &self.signature_policy else { return Ok(()) };
        let mut digests = vec![top.clone()];
        if manifest != top {
            digests.push(manifest.clone());
        }
        signature::check(policy, repository, reference, &digests).await
    }
}

/// The manifest for this machine, through an index if there is one.
async fn find_manifest(repository: &Repository, reference: &Reference) -> Result<Manifest> {
    let (media_type, bytes) = repository.manifest(reference.target()).await?;
    let top = Digest::sha256(&bytes);
    match choose_from_index(&bytes)? {
        None => Manifest::parse(top, &media_type, bytes),
        Some(chosen) => {
            // By digest, so that the two documents belong together even if the tag moves in
            // between.
            let (_, bytes) = repository.manifest(digest_of(&chosen)?.as_str()).await?;
            Manifest::parse(top, chosen.media_type().as_ref(), bytes)
        }
    }
}

/// Runs `work` and logs the progress of the pull at intervals.
async fn log_progress<T>(
    reference: &Reference,
    repository: &Repository,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            return done;
        }
        let received = repository.progress.received.load(Ordering::Relaxed);
        let expected = repository.progress.expected.load(Ordering::Relaxed);
        tracing::info!(image = %reference, received, expected, "pulling");
    }
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").finish_non_exhaustive()
    }
}
