//! Images: pull, push, import, list, check, export, remove.
//!
//! The rest of the daemon sees only `Images`. Below it, a pull is a pipeline:
//!
//! ```text
//! pull, import         name or archive -> manifest, config      `registry`, `archive`, `signature`
//!   fetch_image        all layers at once, then the image
//!     fetch_layer      download | decompress | unpack, verify   `registry::download`, `unpacker`
//!   store              commit layers, index names, sync later, collect
//! ```
//!
//! What is made here goes the same way from the unpacker on: `write_layer`, `write_image`.
//!
//! Everything that comes from a registry or an archive is hostile: it is parsed into types, bounded
//! in size, and verified by digest before anything is named after it.

mod archive;
mod artifact;
mod check;
mod compression;
mod credentials;
mod digest;
mod documents;
mod export;
mod fetch_image;
mod fetch_layer;
#[cfg(fuzzing)]
pub mod fuzz;
mod glob;
mod import;
mod in_use;
mod layer_dir;
mod layer_key;
mod layer_tar;
mod lookup;
mod manifest;
mod observer;
mod options;
mod pack;
mod progress;
mod pull;
mod push;
mod reference;
mod registry;
mod removed;
mod signature;
mod source;
mod store;
mod sub_path;
mod unblock;
mod unpack;
mod unpacker;
mod usage;
mod write_image;
mod write_layer;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    error::{Error, Result},
    observe::{
        step_blocking,
        steps::{name_image, remove_image},
    },
};
use tokio::sync::mpsc;

pub use self::{
    archive::ArchiveReader,
    check::{CheckedImage, Health},
    compression::decompressed,
    credentials::{AuthConfig, CredentialProviders, CredentialSources},
    digest::Digest,
    export::Export,
    import::ImportedImage,
    in_use::ImageUse,
    layer_dir::FILES,
    layer_key::LayerKey,
    lookup::{familiar, normalize},
    observer::Observer,
    options::Options,
    pack::{TarForm, pack},
    progress::{LayerProgress, LayerStep, Watched, watch},
    push::{LayerPush, Push, PushReport},
    registry::{Reached, reach_registries},
    removed::RemovedLayer,
    store::{Disk, Holder, Image, Lease, Names, StoreLayout},
    sub_path::contains_path,
    unpacker::unpack_if_asked,
    usage::Usage,
    write_image::ImageToWrite,
    write_layer::WrittenLayer,
};

use self::{
    check::Checker,
    export::Selection,
    fetch_image::ImageFetcher,
    glob::glob_match,
    import::{import, load},
    in_use::InUse,
    lookup::find,
    pull::Puller,
    push::Pusher,
    reference::Reference,
    registry::Clients,
    store::{Layers, ResumeStates, Store},
    unblock::unblock,
    unpacker::Unpacker,
    write_image::write_image,
    write_layer::{write_tar, write_upper},
};

/// The images of this node.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    fetcher: ImageFetcher,
    puller: Puller,
    pusher: Arc<Pusher>,
    credentials: CredentialSources,
    /// Patterns of names that are pinned.
    pinned: Vec<String>,
    /// Images that came from `images_dir`; they are pinned too.
    preloaded: Mutex<BTreeSet<Digest>>,
    in_use: InUse,
    /// Of the layers that are written here.
    unpacker: Arc<Unpacker>,
}

impl Images {
    /// Loads the images that are on disk; needs a tokio runtime. Nothing is deleted until
    /// `start_collecting` is called, so that containers can lease their layers first.
    ///
    /// # Errors
    /// A directory cannot be created or read.
    pub fn open(
        layout: StoreLayout,
        disk: Disk,
        boot_id: &str,
        options: Options,
        observer: Observer,
    ) -> anyhow::Result<Self> {
        // From the bottom up: the index looks up the layers of its images, and the resume states
        // lease the layers of unfinished pulls.
        let layers = Layers::open(layout.clone(), disk.clone(), boot_id)?;
        let store = Store::open(layout.clone(), layers, disk)?;
        let resume_states = ResumeStates::open(&store, layout, boot_id)?;
        let fetcher = ImageFetcher::new(store.clone(), resume_states, options.stall, observer);
        let clients: Arc<Clients> = Arc::default();
        let puller =
            Puller::new(store.clone(), fetcher.clone(), clients.clone(), &options, observer);
        Ok(Self {
            puller,
            pusher: Arc::new(Pusher::new(store.clone(), clients, &options)),
            store,
            fetcher,
            credentials: options.credentials,
            pinned: options.pinned,
            preloaded: Mutex::default(),
            in_use: InUse::default(),
            unpacker: Arc::default(),
        })
    }

    /// CRI's PullImage. Returns the image's id.
    ///
    /// # Errors
    /// `InvalidArgument` if the name or the credentials cannot be parsed; otherwise see
    /// `Puller::pull`.
    pub async fn pull(&self, name: &str, auth: AuthConfig) -> Result<Digest> {
        self.pull_watched(name, auth, Watched::default()).await
    }

    /// As `pull`, with reports of its layers.
    ///
    /// # Errors
    /// Those of `pull`.
    pub async fn pull_watched(
        &self,
        name: &str,
        auth: AuthConfig,
        watched: Watched,
    ) -> Result<Digest> {
        let reference = Reference::parse(name)?;
        let credentials = self.credentials.credentials(auth, &reference).await?;
        self.puller.pull(reference, credentials, watched).await
    }

    /// The tags that a registry has of a repository, with the credentials of a pull.
    ///
    /// # Errors
    /// As for `pull`.
    pub async fn tags(&self, repository: &str, auth: AuthConfig) -> Result<Vec<String>> {
        let reference = Reference::parse(repository)?;
        let credentials = self.credentials.credentials(auth, &reference).await?;
        self.puller.tags(&reference, credentials).await
    }

    /// What the index of a registry has for a term, as the document that it answers.
    ///
    /// # Errors
    /// See `Puller::search`.
    pub async fn search(&self, term: &str, limit: u32, auth: AuthConfig) -> Result<Vec<u8>> {
        self.puller.search(term, limit, auth).await
    }

    /// Asks a registry, by default Docker Hub, whether it accepts these credentials. They are not
    /// kept.
    ///
    /// # Errors
    /// See `Puller::login`.
    pub async fn login(&self, auth: AuthConfig) -> Result<()> {
        self.puller.login(auth).await
    }

    /// Prepares to push images to `repository`, each under a tag. Only these credentials are shown to
    /// the registry, and none of the node's.
    ///
    /// # Errors
    /// `InvalidArgument` if `repository` is none; see `Pusher::open`.
    pub async fn push(
        &self,
        repository: &str,
        images: Vec<(String, Arc<Image>)>,
        auth: AuthConfig,
    ) -> Result<(Push, mpsc::Receiver<PushReport>)> {
        let reference = Reference::parse(repository)?;
        let credentials = auth.for_host(&reference.host)?;
        self.pusher.clone().open(reference, images, credentials).await
    }

    /// Adds the images in the archive at `path`. An image that has no name in the archive gets
    /// `name`, unless that is empty.
    ///
    /// # Errors
    /// `InvalidArgument` if the file is not an archive of images.
    pub async fn import(&self, path: PathBuf, name: &str) -> Result<Vec<ImportedImage>> {
        let name = match name.is_empty() {
            true => None,
            false => Some(Reference::parse(name)?),
        };
        let store = self.store.clone();
        let fetcher = self.fetcher.clone();
        // In a task of its own, because a client that disconnects must not stop an import halfway.
        tokio::spawn(async move { import(&store, &fetcher, path, name).await })
            .await
            .context("import")?
    }

    /// Imports and pins the images in every file of `directory`, in the order of the file names.
    /// The directory may be absent. A file that cannot be imported is logged and does not stop the
    /// others, nor the daemon.
    pub async fn import_all(&self, directory: &Path) {
        let files = match files_of(directory) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(
                    directory = %directory.display(),
                    %error,
                    "the directory of images to import cannot be read"
                );
                return;
            }
        };
        // One at a time: if two archives contain the same name, the last file wins, on every start.
        for file in files {
            match self.import(file.clone(), "").await {
                Ok(images) => self.preloaded().extend(images.into_iter().map(|image| image.id)),
                Err(error) => tracing::error!(
                    file = %file.display(),
                    %error,
                    "an archive of images cannot be imported"
                ),
            }
        }
    }

    /// Writes the named images into the file or pipe at `path`. Names are anything that `find`
    /// accepts.
    ///
    /// # Errors
    /// `NotFound` for an unknown name, `FailedPrecondition` for a layer that cannot be exported.
    pub async fn export(&self, path: PathBuf, names: &[String]) -> Result<()> {
        let selection = Selection::new(&self.store, names)?;
        let store = self.store.clone();
        unblock(move || selection.write_file(&store, &path)).await
    }

    /// Selects images for one tar, each with the tags that it has there, in this order.
    ///
    /// # Errors
    /// `FailedPrecondition` for a damaged layer.
    pub fn select(&self, images: Vec<(Arc<Image>, Vec<String>)>) -> Result<Export> {
        let mut selection = Selection::default();
        for (image, tags) in images {
            selection.add(&self.store, image, tags)?;
        }
        Ok(Export { store: self.store.clone(), selection })
    }

    /// Reads an archive of images, plain or compressed, to its end. It is kept on the disk of the
    /// layers, and is gone when it is dropped. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not a tar, or is truncated.
    pub fn receive(&self, from: &mut dyn Read) -> Result<ArchiveReader> {
        ArchiveReader::receive(from, &self.store.layers.scratch())
    }

    /// Adds the images in an archive under their tags. One without any stays without a name, as does
    /// one whose last name goes to another. Its layers are reported by their diff-ids.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not an archive of images.
    pub async fn load(
        &self,
        archive: ArchiveReader,
        watched: Watched,
    ) -> Result<Vec<ImportedImage>> {
        let store = self.store.clone();
        let fetcher = self.fetcher.clone();
        // As `import`.
        tokio::spawn(async move { load(&store, &fetcher, archive, watched).await })
            .await
            .context("load")?
    }

    /// Makes a layer of the upper directory of an overlay, in which nothing may change meanwhile.
    /// `None` if there is nothing in it: then the image that is made of it has no layer for it.
    ///
    /// # Errors
    /// Those of the filesystem; `ResourceExhausted` if the disk is full.
    pub async fn write_upper(&self, upper: OwnedFd) -> Result<Option<WrittenLayer>> {
        let (layers, unpacker) = (self.store.layers.clone(), self.unpacker.clone());
        unblock(move || write_upper(&layers, &unpacker, &upper)).await
    }

    /// Makes a layer of a tar, which may be compressed. It can only be the lowest of an image. Blocks.
    ///
    /// # Errors
    /// `FailedPrecondition` for what is no tar, or has what a layer must not have; errors of `tar`.
    pub fn write_tar(&self, tar: &mut dyn Read) -> Result<WrittenLayer> {
        write_tar(&self.store.layers, &self.unpacker, tar)
    }

    /// Adds an image to the index, at once or not at all. It may be lost by a power loss until
    /// `make_durable`.
    ///
    /// # Errors
    /// `FailedPrecondition` if the parent is damaged or being removed, or there are too many layers;
    /// `ResourceExhausted` if the disk is full; `Internal` for a config of other layers.
    pub async fn write_image(&self, image: ImageToWrite) -> Result<Arc<Image>> {
        let store = self.store.clone();
        let write = move || {
            // After a failure nobody needs its layers.
            write_image(&store, image).inspect_err(|_| drop(store.collect()))
        };
        unblock(write).await
    }

    /// Waits until all images are on the disk.
    ///
    /// # Errors
    /// They cannot be written there.
    pub async fn make_durable(&self) -> Result<()> {
        let store = self.store.clone();
        unblock(move || Ok(store.make_durable()?)).await
    }

    /// The image that this one was made of here, if that is here.
    pub fn parent(&self, image: &Image) -> Option<Digest> {
        self.store.origin(&image.id).parent
    }

    /// The images that were made of each one here.
    pub fn children(&self) -> HashMap<Digest, Vec<Digest>> {
        self.store.children()
    }

    /// When somebody last gave it a name, in nanoseconds since the epoch.
    pub fn tagged_at(&self, image: &Image) -> Option<i64> {
        self.store.origin(&image.id).tagged_at
    }

    /// How much of each image is in layers that another one has as well, in bytes on disk.
    pub fn shared_sizes(&self) -> HashMap<Digest, u64> {
        let images = self.all();
        let mut uses: HashMap<&LayerKey, usize> = HashMap::new();
        for key in images.iter().flat_map(|image| &image.layers) {
            *uses.entry(key).or_default() += 1;
        }
        let shared = |image: &Arc<Image>| {
            let keys =
                image.layers.iter().filter(|key| uses.get(key).is_some_and(|uses| *uses > 1));
            keys.filter_map(|key| self.store.layers.bytes(key)).sum()
        };
        images.iter().map(|image| (image.id.clone(), shared(image))).collect()
    }

    /// Verifies every image and sends a report on each as soon as it is ready. With `repair`,
    /// damaged images are pulled again.
    ///
    /// # Errors
    /// The receiver of the reports is gone.
    pub async fn check(&self, repair: bool, report: mpsc::Sender<CheckedImage>) -> Result<()> {
        let mut checker = Checker::new(self.store.clone());
        // A snapshot: images that are added from here on have just been verified by their pull.
        for image in self.store.all() {
            let Some(findings) = checker.check(&image).await? else { continue };
            let mut problems = findings.problems.clone();
            let mut health = match findings.is_damaged() {
                true => Health::Damaged,
                false => Health::Whole,
            };
            if repair && health == Health::Damaged {
                match self.repair(&image, &findings.damaged_layers).await {
                    Ok(()) => {
                        checker.mark_repaired(findings.damaged_layers);
                        health = Health::Repaired;
                    }
                    Err(error) => problems.push(format!("not repaired: {error}")),
                }
            }
            let Names { tags, digests } = self.names(&image);
            let names = if tags.is_empty() { digests } else { tags };
            let checked = CheckedImage { id: image.id.clone(), names, health, problems };
            // A check reads every file and may take hours; there is no point in going on once the
            // client has disconnected.
            report.send(checked).await.map_err(|_| Error::invalid("the client has gone"))?;
        }
        Ok(())
    }

    /// Pulls an image again and replaces its damaged layers.
    async fn repair(&self, image: &Image, damaged: &[LayerKey]) -> Result<()> {
        // By digest: a tag may refer to another image by now, and pulling that would repair
        // nothing.
        let digests = self.names(image).digests;
        let name = digests
            .first()
            .ok_or_else(|| Error::precondition("it came from no registry: import it again"))?;
        // The pull reuses every layer that is not marked.
        if !damaged.iter().all(|key| self.store.layers.mark_damaged(key)) {
            return Err(Error::precondition("a container uses it: remove that first"));
        }
        self.pull(name, AuthConfig::default()).await.map(drop)
    }

    /// Finds an image by tag or digest, id, or unique prefix of an id.
    ///
    /// # Errors
    /// `InvalidArgument` if `text` is neither an id nor a reference, or is the prefix of several ids.
    pub fn find(&self, text: &str) -> Result<Option<Arc<Image>>> {
        find(&self.store, text)
    }

    pub fn all(&self) -> Vec<Arc<Image>> {
        self.store.all()
    }

    pub fn names(&self, image: &Image) -> Names {
        self.store.names(&image.id)
    }

    /// The bytes on disk of each layer of its config, bottom first; 0 for one that is damaged.
    pub fn layer_sizes(&self, image: &Image) -> Vec<u64> {
        let layers = image.layers_by_diff_id().unwrap_or_default();
        let size = |key: &LayerKey| self.store.layers.bytes(key).unwrap_or_default();
        layers.iter().map(|(_, key)| size(key)).collect()
    }

    /// The config of an image as it was made, which has more than the OCI specification names.
    ///
    /// # Errors
    /// It is damaged, or the image was removed.
    pub fn config_document(&self, image: &Image) -> anyhow::Result<Vec<u8>> {
        blocking(|| self.store.blob(&image.id))
    }

    fn preloaded(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.preloaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an image from being removed, though not its names.
    pub fn keep(&self, id: &Digest) -> ImageUse {
        self.in_use.begin(id)
    }

    /// Whether the kubelet must keep the image when it frees disk space.
    pub fn is_pinned(&self, image: &Image) -> bool {
        let Names { tags, digests } = self.names(image);
        let has_pinned_name = tags
            .iter()
            .chain(&digests)
            .any(|name| self.pinned.iter().any(|pattern| glob_match(pattern, name)));
        has_pinned_name || self.preloaded().contains(&image.id) || self.in_use.contains(&image.id)
    }

    /// Gives an image the name `name`, which another one may lose by that. An image that has lost its
    /// last name stays without one.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not the name of a tag, `NotFound` if the image is gone.
    pub fn tag(&self, image: &Image, name: &str) -> Result<()> {
        let tag = Reference::parse(name)?.repo_tag();
        let tag = tag.ok_or_else(|| Error::invalid(format!("{name} has a digest")))?;
        step_blocking(name_image::TAG, || self.store.tag(&image.id, tag))?;
        self.store.make_durable_later();
        Ok(())
    }

    /// Takes names from an image, as `names` has them. When it has none left it stays without one.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn untag(&self, image: &Image, names: &[String]) -> Result<()> {
        step_blocking(name_image::UNTAG, || self.store.untag(&image.id, names))?;
        self.store.make_durable_later();
        Ok(())
    }

    /// CRI's RemoveImage: removes every name of the image. Succeeds if there is no such image.
    ///
    /// # Errors
    /// `InvalidArgument` as for `find`; the index cannot be written.
    pub fn remove(&self, text: &str) -> Result<()> {
        match self.find(text)? {
            Some(image) => self.remove_image(&image).map(drop),
            // A retry comes to the end of the first attempt.
            None => step_blocking(remove_image::COLLECT, || {
                self.store.collect();
                Ok(())
            }),
        }
    }

    /// Removes an image with every name, and returns those of its layers that nothing else needed,
    /// topmost first. One that is kept loses its names only.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn remove_image(&self, image: &Image) -> Result<Vec<RemovedLayer>> {
        // The index comes first. If the daemon dies in between, layers that nothing needs are left
        // behind, and the next start collects them.
        step_blocking(remove_image::INDEX, || match self.in_use.contains(&image.id) {
            true => {
                let Names { tags, digests } = self.store.names(&image.id);
                self.store.untag(&image.id, &[tags, digests].concat())
            }
            false => self.store.remove(&image.id),
        })?;
        let collected =
            step_blocking(remove_image::COLLECT, || Ok::<_, Error>(self.store.collect()))?;
        removed::of_image(image, collected)
    }

    /// Leases layers for a new container; `None` if one is missing or damaged.
    pub fn lease(&self, layers: &[LayerKey]) -> Option<Lease> {
        self.store.layers.lease(layers)
    }

    /// Leases layers for an existing container, whatever their state. Also returns those that are
    /// missing or damaged.
    pub fn hold(&self, layers: &[LayerKey], holder: Holder) -> (Lease, Vec<LayerKey>) {
        self.store.layers.hold(layers, holder)
    }

    /// Leases all layers, for a container whose own layers are unknown.
    pub fn hold_all(&self) -> Lease {
        self.store.layers.hold_all()
    }

    /// Discards the layers that nothing needs. Call it when a container has dropped its lease.
    pub fn collect(&self) {
        self.store.collect();
    }

    /// From here on layers are discarded: call it once all containers have their leases.
    pub fn start_collecting(&self) {
        self.store.start_collecting();
        self.store.collect();
    }

    /// Syncs in the background what an earlier daemon did not get to.
    pub fn make_durable_later(&self) {
        self.store.make_durable_later();
    }

    /// Disk usage of all layers.
    pub fn usage(&self) -> Usage {
        self.store.layers.usage()
    }
}

/// The regular files in a directory, sorted by name; none if the directory is absent.
fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // An entry that cannot be read was removed a moment ago.
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort_unstable();
    Ok(files)
}
