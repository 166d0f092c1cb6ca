//! Writes images into one tar that other tools can load, both as an OCI image layout and as a
//! docker-archive.
//!
//! Layers are not compressed. The store has no compressed blobs, and compressing them again would
//! not give the digests of the registry anyway.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use berth_base::error::{Error, Result};
use serde_json::{Value, json};
use tar::{Builder, Header};

use crate::{
    digest::Digest,
    documents::{
        self, CONTAINERD_NAME, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST,
        OCI_LAYOUT, REF_NAME, descriptor,
    },
    layer_tar::LayerTar,
    lookup::{self, familiar},
    reference::Reference,
    store::{Image, Lease, Store},
};

/// Size of the writer's buffer. A tar consists of small headers between large files.
const BUFFER: usize = 1 << 20;

/// The images to export, each once. Their layers are leased.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// In the order in which they were selected.
    images: Vec<SelectedImage>,
    leases: Vec<Lease>,
}

/// An image, and the tags that it gets in the archive.
#[derive(Debug)]
struct SelectedImage {
    image: Arc<Image>,
    tags: BTreeSet<String>,
}

/// Images that are ready to be written into one tar.
#[derive(Debug)]
pub struct Export {
    pub(super) store: Arc<Store>,
    pub(super) selection: Selection,
}

impl Export {
    /// Writes the tar, a few blocks at a time. Blocks.
    ///
    /// # Errors
    /// `FailedPrecondition` for a layer whose tar cannot be reassembled. What was written is then
    /// not a valid archive.
    pub fn write(&self, to: &mut dyn Write) -> Result<()> {
        self.selection.write(&self.store, to)
    }
}

impl Selection {
    /// Selects images by name, id or digest, as `lookup::find` does.
    ///
    /// # Errors
    /// `NotFound` for an unknown name, `FailedPrecondition` for a damaged layer.
    pub(super) fn new(store: &Store, names: &[String]) -> Result<Self> {
        let mut selection = Self::default();
        for name in names {
            let image = lookup::find(store, name)?
                .ok_or_else(|| Error::not_found(format!("no image {name:?}")))?;
            let tags = tags(store, &image, name);
            selection.add(store, image, tags)?;
        }
        Ok(selection)
    }

    /// Adds an image, or tags to one that is there already.
    ///
    /// # Errors
    /// `FailedPrecondition` for a damaged layer.
    pub(super) fn add(
        &mut self,
        store: &Store,
        image: Arc<Image>,
        tags: Vec<String>,
    ) -> Result<()> {
        self.leases.push(store.layers.lease(&image.layers).ok_or_else(|| {
            Error::precondition(format!(
                "{}: a layer is damaged: `berthd images check --repair` pulls it again",
                image.id
            ))
        })?);
        match self.images.iter_mut().find(|selected| selected.image.id == image.id) {
            Some(selected) => selected.tags.extend(tags),
            None => self.images.push(SelectedImage { image, tags: BTreeSet::from_iter(tags) }),
        }
        Ok(())
    }

    /// Writes the images into the file or pipe at `path`. Blocks.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn write_file(&self, store: &Store, path: &Path) -> Result<()> {
        // Not created here: the client has opened a file, a pipe or its standard output, and sends
        // the path of its descriptor (/proc/PID/fd/N).
        let mut out = File::options()
            .write(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        self.write(store, &mut out)
    }

    /// Writes the images. Blocks.
    ///
    /// # Errors
    /// `FailedPrecondition` for a layer whose tar cannot be reassembled. What was written is then
    /// not a valid archive.
    fn write(&self, store: &Store, out: &mut dyn Write) -> Result<()> {
        let mut archive = ArchiveWriter::new(store, out)?;
        for selected in &self.images {
            archive.add_image(selected)?;
        }
        archive.finish()
    }
}

/// The tag by which an image was selected, or all of its tags if it was selected by id or digest.
fn tags(store: &Store, image: &Image, name: &str) -> Vec<String> {
    let all = store.names(&image.id).tags;
    let selected = Reference::parse(name).ok().and_then(|reference| reference.repo_tag());
    match selected.filter(|tag| all.contains(tag)) {
        Some(tag) => vec![tag],
        None => all,
    }
}

struct ArchiveWriter<'a> {
    store: &'a Store,
    tar: Builder<BufWriter<&'a mut dyn Write>>,
    /// Lengths of the layers that are in the tar already.
    layers: BTreeMap<Digest, u64>,
    /// Manifests and configs that are in the tar already.
    documents: BTreeSet<Digest>,
    /// Descriptors of `index.json`.
    index: Vec<Value>,
    /// Elements of docker's `manifest.json`.
    docker: Vec<Value>,
    /// docker's `repositories`, which tools of before its `manifest.json` read: the topmost layer of
    /// each tag, by repository.
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl<'a> ArchiveWriter<'a> {
    fn new(store: &'a Store, out: &'a mut dyn Write) -> Result<Self> {
        let mut own = Self {
            store,
            tar: Builder::new(BufWriter::with_capacity(BUFFER, out)),
            layers: BTreeMap::new(),
            documents: BTreeSet::new(),
            index: Vec::new(),
            docker: Vec::new(),
            repositories: BTreeMap::new(),
        };
        own.add_file("oci-layout", OCI_LAYOUT)?;
        Ok(own)
    }

    fn add_image(&mut self, selected: &SelectedImage) -> Result<()> {
        let SelectedImage { image, tags } = selected;
        let mut layers = Vec::new();
        let mut paths = Vec::new();
        let mut topmost = None;
        for (diff_id, key) in image.layers_by_diff_id()? {
            // Images that share a layer share its entry in the tar.
            let length = match self.layers.get(&diff_id) {
                Some(length) => *length,
                None => self.add_layer(&diff_id, &self.store.layers.directory(&key))?,
            };
            layers.push(descriptor(MEDIA_TYPE_LAYER, &diff_id, length));
            paths.push(blob_path(&diff_id));
            topmost = Some(diff_id);
        }
        for tag in tags {
            if let (Some((repository, tag)), Some(layer)) = (tag.rsplit_once(':'), &topmost) {
                let tags = self.repositories.entry(familiar(repository).to_owned()).or_default();
                tags.insert(tag.to_owned(), layer.hex().to_owned());
            }
        }
        let config = self.store.blob(&image.id)?;
        self.add_document(&image.id, &config)?;
        let config = descriptor(MEDIA_TYPE_CONFIG, &image.id, config.len() as u64);
        let manifest = documents::manifest(&config, &layers);
        let digest = Digest::sha256(&manifest);
        self.add_document(&digest, &manifest)?;
        let described = descriptor(MEDIA_TYPE_MANIFEST, &digest, manifest.len() as u64);
        self.index.extend(tags.iter().map(|tag| with_name(described.clone(), tag)));
        if tags.is_empty() {
            self.index.push(described);
        }
        self.docker.push(json!({
            "Config": blob_path(&image.id),
            "RepoTags": tags,
            "Layers": paths,
        }));
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        // These two come last, because they list what is in the archive. An archive that was cut
        // off has neither and cannot be mistaken for a complete one.
        let index = documents::index(&self.index);
        self.add_file("index.json", &index)?;
        let docker = Value::from(std::mem::take(&mut self.docker));
        self.add_file("manifest.json", docker.to_string().as_bytes())?;
        if !self.repositories.is_empty() {
            let repositories = json!(self.repositories).to_string();
            self.add_file("repositories", repositories.as_bytes())?;
        }
        let finished = self.tar.into_inner().and_then(|mut out| out.flush());
        finished.context("write the archive")?;
        Ok(())
    }

    fn add_document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if self.documents.insert(digest.clone()) {
            self.add_file(&blob_path(digest), bytes)?;
        }
        Ok(())
    }

    fn add_file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.tar
            .append_data(&mut header(bytes.len() as u64), path, bytes)
            .context("write the archive")?;
        Ok(())
    }

    /// Adds the tar of the layer in `directory`. Returns its length.
    fn add_layer(&mut self, diff_id: &Digest, directory: &Path) -> Result<u64> {
        // The header comes before the content and contains its length. The tar-split alone gives
        // the length, so the files are read only once.
        let length = LayerTar::length(diff_id, directory)?;
        let mut tar = LayerTar::open(diff_id, directory)?;
        let added = self.tar.append_data(&mut header(length), blob_path(diff_id), &mut tar);
        tar.finish(added.context("write the archive"))?;
        self.layers.insert(diff_id.clone(), length);
        Ok(length)
    }
}

/// containerd and nerdctl read the one annotation, podman and skopeo the other.
fn with_name(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({ CONTAINERD_NAME: tag, REF_NAME: tag });
    descriptor
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(length: u64) -> Header {
    // Without a time and an owner, so that exporting the same images gives the same bytes.
    let mut header = Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(length);
    header
}
