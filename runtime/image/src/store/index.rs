//! The index of images: names, manifests and configs, in an OCI image layout without layers.
//!
//! `index.json` lists the names. Every change replaces it by one rename, which makes the change
//! atomic. Blobs that it does not refer to are garbage, and those that it refers to are verified
//! when they are read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, anyhow};
use berth_base::{
    blocking::blocking,
    clock::now,
    error::{Error, Result},
    observe::{step_blocking, steps::pull_image},
};
use berth_shim::record::{self, Found};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};

use super::{
    disk::Disk,
    entries::{Entries, NamedManifest, Nameless, Origin},
    layers::{Collected, Layers},
    layout::StoreLayout,
};
use crate::{
    digest::Digest,
    documents::{OCI_LAYOUT, REF_NAME},
    layer_key::{LayerKey, chain_id, layer_keys},
    manifest::{Manifest, digest_of},
};

/// An image: its config and its layers on this disk.
#[derive(Debug)]
pub struct Image {
    /// The image id: the digest of the config.
    pub id: Digest,
    pub config: ImageConfiguration,
    /// Topmost first, in the order of overlayfs' lower directories.
    pub layers: Vec<LayerKey>,
    /// Bytes on disk.
    pub size: u64,
}

impl Image {
    /// The diff-ids of its layers, bottom first, each with the key of the layer on disk.
    ///
    /// # Errors
    /// The config does not match the layers, which is a bug.
    pub(crate) fn layers_by_diff_id(&self) -> Result<Vec<(Digest, LayerKey)>> {
        let mut layers = Vec::new();
        for (diff_id, keys) in self.config.rootfs().diff_ids().iter().zip(layer_keys(&self.config)?)
        {
            let key = keys.each().into_iter().find(|key| self.layers.contains(key));
            let key = key.context("a layer without a key")?;
            layers.push((Digest::parse(diff_id)?, key.clone()));
        }
        Ok(layers)
    }

    /// The chain-ids of its layers, topmost first, each with the key of the layer on disk.
    pub(crate) fn layers_by_chain_id(&self) -> Result<Vec<(Digest, LayerKey)>> {
        let mut layers = Vec::new();
        let mut below = None;
        for (diff_id, key) in self.layers_by_diff_id()? {
            let chain_id = chain_id(below.as_ref(), diff_id);
            layers.insert(0, (chain_id.clone(), key));
            below = Some(chain_id);
        }
        Ok(layers)
    }
}

/// The names of an image, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `repository:tag`.
    pub tags: Vec<String>,
    /// `repository@digest`.
    pub digests: Vec<String>,
}

/// An image to add. The caller holds leases on its layers.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    /// `repository:tag` and `repository@digest`. A name that another image has moves to this one.
    pub names: &'a [String],
    pub manifest: &'a Manifest,
    pub config: ImageConfiguration,
    pub config_bytes: &'a [u8],
    /// What becomes of an image whose last name moves to this one.
    pub displaced: Nameless,
    pub origin: Origin,
}

#[derive(Debug, Default)]
pub(super) struct State {
    entries: Entries,
    images: BTreeMap<Digest, Arc<Image>>,
    /// Whether all containers have leased their layers, so that the others can be discarded.
    is_collecting: bool,
    /// Whether the index on disk is newer than the last sync.
    pub unsynced: bool,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub(super) layout: StoreLayout,
    pub layers: Arc<Layers>,
    disk: Disk,
    /// Held while the index is written, and by `add` while it writes two small blobs. Lists of
    /// images wait for that, so nothing that takes longer may be done with this lock held.
    state: Mutex<State>,
    /// Held while a sync runs; see `durability`.
    pub(super) syncing: Mutex<()>,
}

impl Store {
    /// Loads the images. A damaged index is set aside and a damaged image is dropped, both with a
    /// warning: the rest of the node must keep working.
    ///
    /// # Errors
    /// A directory cannot be created or read.
    pub(crate) fn open(
        layout: StoreLayout,
        layers: Arc<Layers>,
        disk: Disk,
    ) -> anyhow::Result<Arc<Self>> {
        let blobs = layout.blobs();
        fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
        // Only where it is not right, so that a daemon can start on a disk that is read-only. berth
        // itself does without it; other tools read the directory as an image layout.
        let marker = layout.oci_layout();
        let is_right = matches!(
            record::read_bytes(&marker), Ok(Found::Record(bytes)) if bytes == OCI_LAYOUT
        );
        if !is_right && let Err(error) = record::write_bytes(&marker, OCI_LAYOUT) {
            tracing::warn!("{} cannot be written: {error}", marker.display());
        }
        let store =
            Self { layout, layers, disk, state: Mutex::default(), syncing: Mutex::default() };
        store.load()?;
        Ok(Arc::new(store))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> anyhow::Result<()> {
        let index = self.read_index()?;
        let mut is_damaged = false;
        for descriptor in index.iter().flat_map(ImageIndex::manifests) {
            let annotations = descriptor.annotations().as_ref();
            let name = annotations.and_then(|annotations| annotations.get(REF_NAME));
            if let Err(error) = self.load_image(name, descriptor) {
                is_damaged = true;
                let digest = descriptor.digest();
                match name {
                    Some(name) => tracing::warn!(
                        name,
                        "image dropped: {error:#}; `crictl pull {name}` brings it back"
                    ),
                    None => tracing::warn!(%digest, "image without a name dropped: {error:#}"),
                }
            }
        }
        // The previous daemon may have ended before its sync.
        let bytes = |path: &Path| record::read_bytes(path).ok().and_then(Found::record);
        let is_synced = bytes(&self.layout.index()) == bytes(&self.layout.synced_index());
        let mut state = self.state();
        state.unsynced = !is_synced;
        if is_damaged {
            // Their blobs go with the others that no name refers to.
            let entries = state.entries.clone();
            if let Err(error) = self.replace_entries(&mut state, entries) {
                tracing::warn!("images that were dropped stay in the index: {error:#}");
                return Ok(());
            }
        }
        // It may also have ended between the writes of a blob and of the index.
        self.drop_unlisted(&mut state);
        Ok(())
    }

    /// Reads the index, or that of the last sync if a power loss has damaged it or taken its name.
    fn read_index(&self) -> anyhow::Result<Option<ImageIndex>> {
        let path = self.layout.index();
        let synced = self.layout.synced_index();
        let aside = self.layout.damaged_index();
        match read(&path)? {
            Found::Record(index) => return Ok(Some(index)),
            Found::Absent => {}
            Found::Damaged => tracing::warn!(
                path = %path.display(),
                aside = %aside.display(),
                synced = %synced.display(),
                "the image index is damaged: set aside, names are as they were at the last sync; \
                 images that are missing are to be pulled again"
            ),
        }
        let index = read(&synced)?.record();
        if let Err(error) = set_aside(&path, &aside, index.as_ref()) {
            // What has just been read is true in memory, and the next change writes it.
            tracing::warn!("the image index cannot be written yet: {error}");
        }
        Ok(index)
    }

    fn load_image(&self, name: Option<&String>, descriptor: &Descriptor) -> anyhow::Result<()> {
        let manifest: ImageManifest = serde_json::from_slice(&self.blob(&digest_of(descriptor)?)?)?;
        let id = digest_of(manifest.config())?;
        let mut state = self.state();
        if !state.images.contains_key(&id) {
            let config: ImageConfiguration = serde_json::from_slice(&self.blob(&id)?)?;
            state.images.insert(id.clone(), Arc::new(self.assemble(&id, config)?));
        }
        state.entries.note(&id, &Origin::of(descriptor));
        // In the annotations are the name, which is the key of the map, and the origin.
        let mut manifest = descriptor.clone();
        manifest.set_annotations(None);
        match name {
            Some(name) => {
                let named = NamedManifest { manifest, image: id };
                drop(state.entries.names.insert(name.clone(), named));
            }
            None => drop(state.entries.nameless.insert(id, manifest)),
        }
        Ok(())
    }

    /// Reads and verifies a manifest or config. Blobs are not synced when they are written, so a
    /// power loss may have left any of them empty.
    ///
    /// # Errors
    /// The blob is missing or damaged.
    pub(crate) fn blob(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        let path = self.layout.blob(digest);
        let found = record::read_bytes(&path);
        match found.with_context(|| format!("read {}", path.display()))? {
            Found::Record(bytes) if Digest::sha256(&bytes) == *digest => Ok(bytes),
            Found::Record(_) | Found::Damaged => Err(anyhow!("{} is damaged", path.display())),
            Found::Absent => Err(anyhow!("{} is missing", path.display())),
        }
    }

    /// Writes a manifest or config, unless it exists. The caller holds the lock of the state.
    fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> anyhow::Result<()> {
        // An intact one is not replaced. It may be durable already, and a new file would not be
        // until the next sync.
        if self.blob(digest).is_ok() {
            return Ok(());
        }
        let path = self.layout.blob(digest);
        record::write_bytes(&path, bytes).with_context(|| format!("write {}", path.display()))
    }

    /// Discards the layers that no image, container or pull needs. Call it whenever one of these
    /// has gone. Returns what it has discarded, which is nothing before `start_collecting`.
    pub(crate) fn collect(&self) -> Vec<Collected> {
        // Locked until the end. Otherwise an image could be added, and its pull drop its leases,
        // between these two steps, and the image would lose its layers.
        let state = self.state();
        if !state.is_collecting {
            return Vec::new();
        }
        let needed: HashSet<&LayerKey> =
            state.images.values().flat_map(|image| &image.layers).collect();
        self.layers.collect(|key| needed.contains(key))
    }

    pub(crate) fn start_collecting(&self) {
        self.state().is_collecting = true;
    }

    /// Reads and verifies the manifests that an image's names refer to, and its config.
    ///
    /// # Errors
    /// One of them is missing or damaged.
    pub(crate) fn check_documents(&self, id: &Digest) -> anyhow::Result<()> {
        for manifest in self.manifests_of(id) {
            self.blob(&digest_of(&manifest)?)?;
        }
        self.blob(id)?;
        Ok(())
    }

    /// The manifests of an image, by which it was pulled or pushed.
    pub(crate) fn manifests_of(&self, id: &Digest) -> Vec<Descriptor> {
        let state = self.state();
        let own = state.entries.manifests().filter(|(image, _)| *image == id);
        own.map(|(_, manifest)| manifest.clone()).collect()
    }

    /// The repositories that an image was pulled from or pushed to, each with its manifest there.
    pub(crate) fn repositories(&self, id: &Digest) -> Vec<(String, Descriptor)> {
        let state = self.state();
        let own = state.entries.names.iter().filter(|(_, named)| named.image == *id);
        own.filter_map(|(name, named)| {
            let (repository, _) = name.split_once('@')?;
            Some((repository.to_owned(), named.manifest.clone()))
        })
        .collect()
    }

    /// Adds an image. Without names it stays without one. Blocks.
    ///
    /// # Errors
    /// A layer is missing; `ResourceExhausted` if the disk is full.
    pub(crate) fn add(&self, new: NewImage<'_>) -> Result<Arc<Image>> {
        let NewImage { names, manifest, config, config_bytes, displaced, origin } = new;
        let id = Digest::sha256(config_bytes);
        // Locked before the blobs are written. Nothing refers to them yet, and the removal of
        // another image would delete them as garbage.
        let mut state = self.state();
        self.write_blob(&manifest.digest()?, &manifest.bytes)?;
        self.write_blob(&id, config_bytes)?;
        let image = match state.images.get(&id) {
            Some(image) => image.clone(),
            None => {
                let image = Arc::new(self.assemble(&id, config)?);
                state.images.insert(id.clone(), image.clone());
                image
            }
        };
        let named = NamedManifest { manifest: manifest.descriptor.clone(), image: id };
        let mut changed = state.entries.clone();
        changed.name(names, &named, displaced);
        changed.note(&named.image, &origin);
        let replaced =
            step_blocking(pull_image::INDEX, || self.replace_entries(&mut state, changed));
        // Also after a failure, because then the new image is not listed and its blobs are garbage.
        self.drop_unlisted(&mut state);
        replaced?;
        Ok(image)
    }

    /// Gives an image another name. An image whose last name that was stays without one.
    ///
    /// # Errors
    /// `NotFound` if the image is gone; the index cannot be written.
    pub(crate) fn tag(&self, id: &Digest, name: String) -> Result<()> {
        let mut state = self.state();
        let manifest = state.entries.manifests().find(|(image, _)| *image == id);
        let (_, manifest) = manifest.ok_or_else(|| Error::not_found(format!("no image {id}")))?;
        let named = NamedManifest { manifest: manifest.clone(), image: id.clone() };
        let mut changed = state.entries.clone();
        changed.name(&[name], &named, Nameless::Kept);
        changed.note(id, &Origin { parent: None, tagged_at: Some(now()) });
        self.replace_entries(&mut state, changed)?;
        self.drop_unlisted(&mut state);
        Ok(())
    }

    /// Takes names from an image, which stays when it has none left. Names of other images stay as
    /// they are.
    ///
    /// # Errors
    /// The index cannot be written.
    pub(crate) fn untag(&self, id: &Digest, names: &[String]) -> Result<()> {
        self.change(|entries| entries.untag(names, id))
    }

    /// Removes an image with every name. `collect` then discards the layers that nothing else needs.
    ///
    /// # Errors
    /// The index cannot be written.
    pub(crate) fn remove(&self, id: &Digest) -> Result<()> {
        self.change(|entries| entries.remove(id))
    }

    fn change(&self, change: impl FnOnce(&mut Entries)) -> Result<()> {
        let mut state = self.state();
        let mut changed = state.entries.clone();
        change(&mut changed);
        self.replace_entries(&mut state, changed)?;
        self.drop_unlisted(&mut state);
        Ok(())
    }

    /// Replaces all entries atomically, first on disk and then in memory.
    fn replace_entries(&self, state: &mut State, mut entries: Entries) -> anyhow::Result<()> {
        entries.forget_gone();
        let index = entries.index();
        // Removing images is how a node frees a full disk, so it must not fail because the disk is
        // full.
        let path = self.layout.index();
        blocking(|| self.disk.with_room(|| record::write(&path, &index)))
            .context("write the image index")?;
        state.entries = entries;
        state.unsynced = true;
        Ok(())
    }

    /// Drops the images that are not listed, and the blobs that nothing refers to. Such an image
    /// would be gone after a restart anyway.
    fn drop_unlisted(&self, state: &mut State) {
        let State { entries, images, .. } = state;
        let listed = entries.images();
        images.retain(|id, _| listed.contains(id));
        let mut needed: HashSet<&str> = listed.iter().map(|id| id.hex()).collect();
        for (_, manifest) in entries.manifests() {
            needed.extend(manifest.digest().as_ref().strip_prefix("sha256:"));
        }
        for entry in fs::read_dir(self.layout.blobs()).into_iter().flatten().flatten() {
            // Blobs are written under the lock of the state, so that even a temporary file is one
            // that a daemon left when it was killed.
            if entry.file_name().to_str().is_none_or(|hex| !needed.contains(hex)) {
                // A blob that stays is small, and the next change tries again.
                let _ = record::remove(&entry.path());
            }
        }
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Image>> {
        self.named(name).map(|(image, _)| image)
    }

    /// The image that a name refers to, and the digest of its manifest.
    pub(crate) fn named(&self, name: &str) -> Option<(Arc<Image>, Digest)> {
        let state = self.state();
        let NamedManifest { manifest, image } = state.entries.names.get(name)?;
        Some((state.images.get(image)?.clone(), digest_of(manifest).ok()?))
    }

    /// Whether everything of an image is on disk and intact, as far as can be told without reading
    /// the layers.
    pub(crate) fn is_complete(&self, image: &Image) -> bool {
        self.layers.lease(&image.layers).is_some() && self.check_documents(&image.id).is_ok()
    }

    /// Finds an image by id, with or without `sha256:`, or by a unique prefix of an id.
    ///
    /// # Errors
    /// `InvalidArgument` if the prefix is that of several ids.
    pub(crate) fn by_id(&self, text: &str) -> Result<Option<Arc<Image>>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() {
            return Ok(None);
        }
        let state = self.state();
        let mut matching =
            state.images.iter().filter(|(id, _)| id.hex().starts_with(hex)).map(|(_, image)| image);
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("{text} is the start of several image ids")))
            }
            (image, _) => Ok(image.cloned()),
        }
    }

    pub(crate) fn names(&self, id: &Digest) -> Names {
        let state = self.state();
        let own = state.entries.names.iter().filter(|(_, named)| named.image == *id);
        // Neither hosts, repositories nor tags can contain an @.
        let (digests, tags) =
            own.map(|(name, _)| name.clone()).partition(|name| name.contains('@'));
        Names { tags, digests }
    }

    /// What is known of an image beside its documents.
    pub(crate) fn origin(&self, id: &Digest) -> Origin {
        self.state().entries.origins.get(id).cloned().unwrap_or_default()
    }

    /// The images that were made of each one.
    pub(crate) fn children(&self) -> HashMap<Digest, Vec<Digest>> {
        let state = self.state();
        let mut children: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (image, origin) in &state.entries.origins {
            if let Some(parent) = &origin.parent {
                children.entry(parent.clone()).or_default().push(image.clone());
            }
        }
        children
    }

    /// The layers of an image as its manifest lists them, bottom first.
    ///
    /// # Errors
    /// The image is gone, or its manifest is damaged.
    pub(crate) fn layers_of(&self, id: &Digest) -> anyhow::Result<Vec<Descriptor>> {
        let manifest = self.manifests_of(id).into_iter().next().context("the image is gone")?;
        let manifest: ImageManifest = serde_json::from_slice(&self.blob(&digest_of(&manifest)?)?)?;
        Ok(manifest.layers().clone())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    /// Makes an image of a config and the layers on disk that belong to it.
    fn assemble(&self, id: &Digest, config: ImageConfiguration) -> anyhow::Result<Image> {
        let mut size = 0;
        let mut layers = Vec::new();
        for keys in layer_keys(&config)? {
            let (key, bytes) = keys
                .each()
                .into_iter()
                .find_map(|key| Some((key.clone(), self.layers.bytes(key)?)))
                .ok_or_else(|| anyhow!("a layer of {id} is missing or damaged"))?;
            // An image may contain a layer twice. overlayfs refuses that with ELOOP. The lower one
            // can be left out, because the upper one hides it.
            layers.retain(|layer| *layer != key);
            layers.push(key);
            size += bytes;
        }
        layers.reverse();
        if layers.is_empty() {
            layers.push(LayerKey::empty());
        }
        // Never 0, which CRI clients treat as an error.
        Ok(Image { id: id.clone(), config, layers, size: size.max(1) })
    }
}

/// Sets a damaged index aside, for people to look at, and puts `index` in its place.
fn set_aside(path: &Path, aside: &Path, index: Option<&ImageIndex>) -> io::Result<()> {
    // A power loss may have taken its name altogether.
    if fs::symlink_metadata(path).is_ok() {
        // Of an earlier time, and perhaps a directory, which rename(2) does not replace.
        record::remove(aside)?;
        fs::rename(path, aside)?;
    }
    index.map_or(Ok(()), |index| record::write(path, index))
}

fn read(path: &Path) -> anyhow::Result<Found<ImageIndex>> {
    record::read(path).with_context(|| format!("read {}", path.display()))
}
