//! Images on disk: an OCI layout of names, manifests and configs; their layers are in `layers`.
//!
//! `images/index.json` names what there is and is replaced by one rename, which is the transaction. Nothing is synced before a pull
//! answers, so that power loss can cost a pull but never gives a damaged image. `index.json.synced` is the index as of the last
//! background syncfs(2), for when the newer one is lost.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, anyhow};
use berth_shim::record::{self, Found};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use sha2::{Digest as _, Sha256};

use super::{
    layers::{EMPTY, Layers, Lease},
    reference::Digest,
};
use crate::{
    error::{Error, Result},
    id,
    layout::Layout,
};

/// Extension of the index as it was at the last sync.
const SYNCED: &str = "json.synced";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a user calls an image: its manifest, as the names lead to it, and its config, which is its id.
#[derive(Debug)]
pub(crate) struct Image {
    /// Digest of the config.
    pub id: Digest,
    pub config: ImageConfiguration,
    /// Keys of layers, topmost first, as overlayfs wants them.
    pub layers: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
}

/// A manifest under a name.
#[derive(Clone, Debug)]
struct Named {
    manifest: Descriptor,
    image: Digest,
}

/// An image with its layers, which stay as long as it does.
#[derive(Debug)]
struct Stored {
    image: Arc<Image>,
    _layers: Lease,
}

#[derive(Debug, Default)]
struct State {
    /// `repository:tag` and `repository@digest`.
    names: BTreeMap<String, Named>,
    images: BTreeMap<Digest, Stored>,
    /// The index is newer than the last sync.
    unsynced: bool,
}

#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    pub layers: Arc<Layers>,
    state: Mutex<State>,
    /// One sync at a time.
    sync: Mutex<()>,
}

impl Store {
    /// Reads what is on disk. What is damaged is set aside or thrown away with a line in the log.
    pub(crate) fn open(layout: Layout, layers: Arc<Layers>) -> anyhow::Result<Arc<Self>> {
        let blobs = layout.blobs();
        fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
        let version = layout.images().join("oci-layout");
        fs::write(&version, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .with_context(|| format!("write {}", version.display()))?;
        let store = Self { layout, layers, state: Mutex::default(), sync: Mutex::default() };
        store.load_index()?;
        Ok(Arc::new(store))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_index(&self) -> anyhow::Result<()> {
        let path = self.layout.image_index();
        let read = |path: &Path| record::read(path).with_context(|| format!("read {}", path.display()));
        let index: ImageIndex = match read(&path)? {
            Found::Absent => return Ok(()),
            Found::Record(index) => index,
            Found::Damaged => {
                let (aside, synced) = (path.with_extension("json.damaged"), path.with_extension(SYNCED));
                tracing::warn!(path = %path.display(), aside = %aside.display(), synced = %synced.display(), "the image index is damaged: set aside, names are as they were at the last sync");
                fs::rename(&path, &aside).with_context(|| format!("set {} aside", path.display()))?;
                match read(&synced)? {
                    Found::Record(index) => {
                        record::write(&path, &index).context("write the image index")?;
                        index
                    }
                    Found::Absent | Found::Damaged => return Ok(()),
                }
            }
        };
        for descriptor in index.manifests() {
            let Some(name) = descriptor.annotations().as_ref().and_then(|annotations| annotations.get(REF_NAME)) else {
                continue;
            };
            if let Err(error) = self.load_image(name, descriptor) {
                tracing::warn!(name, "image dropped: {error:#}");
            }
        }
        // An earlier daemon may have ended before its sync.
        self.state().unsynced = fs::read(&path).ok() != fs::read(path.with_extension(SYNCED)).ok();
        Ok(())
    }

    fn load_image(&self, name: &str, descriptor: &Descriptor) -> anyhow::Result<()> {
        let manifest: ImageManifest =
            serde_json::from_slice(&self.blob(&Digest::parse(descriptor.digest().as_ref())?)?)?;
        let id = Digest::parse(manifest.config().digest().as_ref())?;
        let mut state = self.state();
        if !state.images.contains_key(&id) {
            let config: ImageConfiguration = serde_json::from_slice(&self.blob(&id)?)?;
            state.images.insert(id.clone(), self.assemble(&id, config)?);
        }
        let mut manifest = descriptor.clone();
        manifest.set_annotations(None);
        state.names.insert(name.to_owned(), Named { manifest, image: id });
        Ok(())
    }

    /// A manifest or config, whose digest is checked anew: a blob may be of a boot that ended too early.
    pub(crate) fn blob(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        let path = self.layout.blobs().join(digest.hex());
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if Digest::of(Sha256::digest(&bytes)) == *digest {
            Ok(bytes)
        } else {
            Err(anyhow!("{} is damaged", path.display()))
        }
    }

    /// Marks a layer as damaged, so that it is pulled anew, unless a container or a pull uses it: false then.
    pub(crate) fn distrust(&self, key: &str) -> bool {
        let state = self.state();
        let images = state.images.values().filter(|stored| stored.image.layers.iter().any(|own| own == key)).count();
        self.layers.distrust(key, images)
    }

    /// Reads what the image's names lead to, and its config.
    ///
    /// # Errors
    /// One is missing or damaged.
    pub(crate) fn check_documents(&self, id: &Digest) -> anyhow::Result<()> {
        let manifests: Vec<String> = {
            let state = self.state();
            let own = state.names.values().filter(|named| named.image == *id);
            own.map(|named| named.manifest.digest().to_string()).collect()
        };
        manifests.iter().try_for_each(|manifest| self.blob(&Digest::parse(manifest)?).map(drop))?;
        self.blob(id).map(drop)
    }

    /// Adds an image whose layers the caller holds, under `names`; a name that another image has moves.
    pub(crate) fn add(&self, names: &[String], manifest: (&Descriptor, &[u8]), config: &[u8]) -> Result<Arc<Image>> {
        let (descriptor, manifest_bytes) = manifest;
        let id = Digest::of(Sha256::digest(config));
        let parsed: ImageConfiguration = serde_json::from_slice(config).context("image config")?;
        // From here on: another image's end must not take blobs that no name needs yet.
        let mut state = self.state();
        for (digest, bytes) in [(&Digest::parse(descriptor.digest().as_ref())?, manifest_bytes), (&id, config)] {
            // Written anew it would not be on the disk before the next sync.
            if self.blob(digest).is_ok() {
                continue;
            }
            let path = self.layout.blobs().join(digest.hex());
            let tmp = path.with_extension(id::random_hex(4));
            fs::write(&tmp, bytes)
                .and_then(|()| fs::rename(&tmp, &path))
                .with_context(|| format!("write {}", path.display()))?;
        }
        let image = match state.images.get(&id) {
            Some(stored) => stored.image.clone(),
            None => {
                let stored = self.assemble(&id, parsed)?;
                let image = stored.image.clone();
                state.images.insert(id.clone(), stored);
                image
            }
        };
        let mut changed = state.names.clone();
        changed
            .extend(names.iter().map(|name| (name.clone(), Named { manifest: descriptor.clone(), image: id.clone() })));
        let result = self.replace_names(&mut state, changed);
        self.drop_nameless(&mut state);
        result?;
        Ok(image)
    }

    /// Removes every name of an image; its layers go unless a container holds them.
    pub(crate) fn remove(&self, id: &Digest) -> Result<()> {
        let mut state = self.state();
        let mut changed = state.names.clone();
        changed.retain(|_, named| named.image != *id);
        self.replace_names(&mut state, changed)?;
        self.drop_nameless(&mut state);
        Ok(())
    }

    /// The transaction of every change.
    fn replace_names(&self, state: &mut State, names: BTreeMap<String, Named>) -> anyhow::Result<()> {
        let manifests = names.iter().map(|(name, named)| {
            let mut descriptor = named.manifest.clone();
            descriptor.set_annotations(Some(HashMap::from([(REF_NAME.to_owned(), name.clone())])));
            descriptor
        });
        let mut index = ImageIndex::default();
        index.set_schema_version(2);
        index.set_manifests(manifests.collect());
        record::write(&self.layout.image_index(), &index).context("write the image index")?;
        (state.names, state.unsynced) = (names, true);
        Ok(())
    }

    /// An image without a name is gone: nobody can ask for it any more.
    fn drop_nameless(&self, state: &mut State) {
        let State { names, images, .. } = state;
        images.retain(|id, _| names.values().any(|named| named.image == *id));
        let needed = |hex: &str| {
            let is = |digest: &str| digest.strip_prefix("sha256:") == Some(hex);
            state.names.values().any(|named| is(named.manifest.digest().as_ref()) || named.image.hex() == hex)
        };
        for entry in fs::read_dir(self.layout.blobs()).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|hex| hex.len() == 64 && !needed(hex)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// `make_durable` in the background.
    pub(crate) fn make_durable_later(self: &Arc<Self>) {
        let own = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = own.make_durable() {
                tracing::warn!("make images durable: {error:#}");
                own.state().unsynced = true;
            }
        });
    }

    /// Marks what was pulled since boot as being on disk, after it is. Blocks.
    fn make_durable(&self) -> anyhow::Result<()> {
        let _one = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = {
            let mut state = self.state();
            let pending = self.layers.unsynced();
            if pending.is_empty() && !state.unsynced {
                return Ok(());
            }
            state.unsynced = false;
            pending
        };
        // What the index is now will be on disk afterwards, whatever takes its place meanwhile, or is written over it.
        let (index, syncing) = (self.layout.image_index(), self.layout.image_index().with_extension("json.syncing"));
        let kept = index.exists();
        if kept {
            fs::copy(&index, &syncing).context("keep the image index")?;
        }
        let root = fs::File::open(self.layout.layers()).context("open layers")?;
        rustix::fs::syncfs(&root).context("syncfs")?;
        if kept {
            fs::rename(&syncing, index.with_extension(SYNCED)).context("keep the image index")?;
        }
        self.layers.are_synced(pending)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Image>> {
        self.named(name).map(|(image, _)| image)
    }

    /// What a name leads to, and the digest of the manifest by which it does.
    pub(crate) fn named(&self, name: &str) -> Option<(Arc<Image>, Digest)> {
        let state = self.state();
        let Named { manifest, image } = state.names.get(name)?;
        let manifest = Digest::parse(manifest.digest().as_ref()).ok()?;
        Some((state.images.get(image)?.image.clone(), manifest))
    }

    /// Whether all that an image has is on the disk, as far as that is known.
    pub(crate) fn is_whole(&self, image: &Image) -> bool {
        self.layers.lease(&image.layers).is_some() && self.check_documents(&image.id).is_ok()
    }

    /// By image id, with or without `sha256:`, or by a prefix of it that only one image has.
    ///
    /// # Errors
    /// `InvalidArgument` for a prefix of several.
    pub(crate) fn by_id(&self, text: &str) -> Result<Option<Arc<Image>>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() {
            return Ok(None);
        }
        let state = self.state();
        let mut matching =
            state.images.iter().filter(|(id, _)| id.hex().starts_with(hex)).map(|(_, stored)| &stored.image);
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(Error::invalid(format!("{text} is the start of several image ids"))),
            (image, _) => Ok(image.cloned()),
        }
    }

    /// Names of an image, sorted.
    pub(crate) fn names(&self, id: &Digest) -> Vec<String> {
        self.state().names.iter().filter(|(_, named)| named.image == *id).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.state().images.values().map(|stored| stored.image.clone()).collect()
    }

    fn assemble(&self, id: &Digest, config: ImageConfiguration) -> anyhow::Result<Stored> {
        let mut total = 0;
        let mut layers = Vec::new();
        for candidates in keys(&config)? {
            let found = candidates.into_iter().find_map(|key| self.layers.bytes(&key).map(|bytes| (key, bytes)));
            let (key, bytes) = found.ok_or_else(|| anyhow!("a layer of {id} is missing"))?;
            // A layer may come twice; overlayfs takes it once, and the upper one decides.
            layers.retain(|layer| *layer != key);
            layers.push(key);
            total += bytes;
        }
        layers.reverse();
        if layers.is_empty() {
            layers.push(EMPTY.to_owned());
        }
        let lease = self.layers.lease(&layers).ok_or_else(|| anyhow!("a layer of {id} is damaged"))?;
        // The config counts too, so that an image is never of size 0, which CRI clients refuse.
        let image = Image { id: id.clone(), config, layers, size: total.max(1) };
        Ok(Stored { image: Arc::new(image), _layers: lease })
    }
}

/// Keys that the layers of an image may have, bottom first: by diff-id, or by chain-id where it leaves out parent directories.
pub(crate) fn keys(config: &ImageConfiguration) -> Result<Vec<[String; 2]>> {
    let mut chain: Option<Digest> = None;
    let mut keys = Vec::new();
    for text in config.rootfs().diff_ids() {
        let diff_id = Digest::parse(text)?;
        let next = match chain {
            None => diff_id.clone(),
            Some(below) => Digest::of(Sha256::digest(format!("{below} {diff_id}"))),
        };
        keys.push([diff_id.hex().to_owned(), format!("chain-{}", next.hex())]);
        chain = Some(next);
    }
    Ok(keys)
}

/// Diff-ids of an image's layers, bottom first, each with its key.
pub(crate) fn layer_keys(image: &Image) -> Result<Vec<(Digest, String)>> {
    let own = |candidates: [String; 2]| candidates.into_iter().find(|key| image.layers.contains(key));
    let keys = keys(&image.config)?.into_iter().map(own);
    let diff_ids = image.config.rootfs().diff_ids().iter().map(|text| Digest::parse(text));
    diff_ids.zip(keys).map(|(diff_id, key)| Ok((diff_id?, key.context("a layer without a key")?))).collect()
}
