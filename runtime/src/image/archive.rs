//! Images in a file, for nodes without a registry: an OCI image layout (image-layout.md) or what `docker save` writes, as a tar.
//!
//! The tar is indexed once and read in place: nothing of it is unpacked but layers, which go the way of every pull.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::{
    manifest::{self, Manifest},
    reference::{Digest, Reference},
    unpack::Source,
};
use crate::error::{Error, Result};

/// Of one document: as from a registry.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Entries are remembered.
const MAX_ENTRIES: usize = 1 << 16;
const CHUNK: usize = 128 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Where something is in the file.
#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    size: u64,
}

/// A file of images.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    entries: HashMap<PathBuf, Extent>,
    /// What a docker-archive has under names of its own.
    blobs: HashMap<Digest, Extent>,
}

/// An image of an archive.
#[derive(Debug)]
pub(super) struct Packed {
    references: Vec<Reference>,
    pub manifest: Manifest,
    /// No registry has this manifest: its digest is nobody's name for the image.
    made_here: bool,
}

impl Packed {
    pub(super) fn tags(&self) -> Vec<String> {
        self.references.iter().filter_map(Reference::repo_tag).collect()
    }

    /// Tags, and the digests that a registry would have given.
    pub(super) fn names(&self) -> Vec<String> {
        let digests = self.references.iter().map(|reference| reference.repo_digest(&self.manifest.top));
        self.tags().into_iter().chain(digests.filter(|_| !self.made_here)).collect()
    }
}

/// An element of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("archive: {what}"))
}

impl Archive {
    /// Opens what is at `path`. A pipe, and what is compressed, is copied first, into a nameless file in `directory`. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no tar, or one that ends too early.
    pub(super) fn open(path: &Path, directory: &Path) -> Result<Self> {
        let mut given = File::open(path).map_err(|error| wrong(format!("open {}: {error}", path.display())))?;
        let mut head = Vec::new();
        (&mut given).take(4).read_to_end(&mut head).map_err(wrong)?;
        let seekable = given.metadata().is_ok_and(|metadata| metadata.is_file());
        let compressed = head.starts_with(&GZIP) || head.starts_with(&ZSTD);
        let file = if seekable && !compressed {
            given
        } else {
            let all = io::Cursor::new(head.clone()).chain(given);
            let mut plain: Box<dyn Read> = if head.starts_with(&GZIP) {
                Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(all)))
            } else if head.starts_with(&ZSTD) {
                Box::new(zstd::Decoder::new(all).context("zstd")?)
            } else {
                Box::new(all)
            };
            let mut copy = tempfile_in(directory)?;
            copy_all(&mut plain, &mut copy)?;
            copy
        };
        let entries = index(&file)?;
        Ok(Self { file, entries, blobs: HashMap::new() })
    }

    /// What is in it, under the names that it gives, or under `name`.
    ///
    /// # Errors
    /// `InvalidArgument` for what is neither of the two forms, and for an image without a name.
    pub(super) fn images(&mut self, name: Option<Reference>) -> Result<Vec<Packed>> {
        let mut images = Vec::new();
        if self.entries.contains_key(Path::new("index.json")) {
            images = self.of_layout()?;
        }
        let nameless = images.iter().any(|image| image.references.is_empty());
        if (images.is_empty() || nameless) && self.entries.contains_key(Path::new("manifest.json")) {
            images = self.of_docker()?;
        }
        if images.is_empty() {
            return Err(wrong("neither an OCI image layout nor a docker-archive with an image for this machine"));
        }
        let mut name = name;
        for image in images.iter_mut().filter(|image| image.references.is_empty()) {
            let name = name.take().ok_or_else(|| wrong("an image has no name: give one with --name"))?;
            image.references.push(name);
        }
        Ok(images)
    }

    /// By `index.json`; one manifest may be there under several names.
    fn of_layout(&self) -> Result<Vec<Packed>> {
        let bytes = self.document(self.entry("index.json")?)?;
        let index: ImageIndex =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("index.json: {error}")))?;
        let mut images: BTreeMap<Digest, Packed> = BTreeMap::new();
        for descriptor in index.manifests() {
            if !manifest::fits(descriptor) {
                continue;
            }
            let top = manifest::digest_of(descriptor)?;
            if !images.contains_key(&top) {
                let manifest = self.manifest(&top, descriptor)?;
                images.insert(top.clone(), Packed { references: Vec::new(), manifest, made_here: false });
            }
            if let (Some(image), Some(name)) = (images.get_mut(&top), name_of(descriptor)) {
                image.references.push(Reference::parse(name).map_err(wrong)?);
            }
        }
        Ok(images.into_values().collect())
    }

    fn manifest(&self, top: &Digest, descriptor: &Descriptor) -> Result<Manifest> {
        let bytes = self.by_digest(top)?;
        match manifest::choose_from_index(&bytes)? {
            None => Manifest::parse(top.clone(), descriptor.media_type().as_ref(), bytes),
            Some(chosen) => {
                let bytes = self.by_digest(&manifest::digest_of(&chosen)?)?;
                Manifest::parse(top.clone(), chosen.media_type().as_ref(), bytes)
            }
        }
    }

    /// By docker's `manifest.json`: there is no manifest as registries have them, so one is made.
    fn of_docker(&mut self) -> Result<Vec<Packed>> {
        let bytes = self.document(self.entry("manifest.json")?)?;
        let saved: Vec<Saved> =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("manifest.json: {error}")))?;
        saved.into_iter().map(|saved| self.saved(saved)).collect()
    }

    fn saved(&mut self, saved: Saved) -> Result<Packed> {
        let at = self.entry(&saved.config)?;
        let config_bytes = self.document(at)?;
        let config: ImageConfiguration = serde_json::from_slice(&config_bytes)
            .map_err(|error| wrong(format!("{} is not an image's config: {error}", saved.config)))?;
        let config_digest = Digest::of(Sha256::digest(&config_bytes));
        self.blobs.insert(config_digest.clone(), at);
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != saved.layers.len() {
            return Err(wrong(format!("{} layers, and {} in the config", saved.layers.len(), diff_ids.len())));
        }
        let mut layers = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
            let at = self.entry(path)?;
            let digest = if self.is_plain(at)? { Digest::parse(diff_id)? } else { self.digest(at)? };
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.as_str(), "size": at.size,
            }));
            self.blobs.insert(digest, at);
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": layers,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.as_str(), "size": at.size,
            },
        });
        let bytes = manifest.to_string().into_bytes();
        let tags = saved.repo_tags.unwrap_or_default();
        let references = tags.iter().map(|tag| Reference::parse(tag).map_err(wrong)).collect::<Result<_>>()?;
        let top = Digest::of(Sha256::digest(&bytes));
        Ok(Packed { references, manifest: Manifest::parse(top, media_type, bytes)?, made_here: true })
    }

    fn entry(&self, path: &str) -> Result<Extent> {
        self.entries.get(Path::new(path)).copied().ok_or_else(|| wrong(format!("{path} is missing")))
    }

    fn document(&self, at: Extent) -> Result<Vec<u8>> {
        if at.size > MAX_DOCUMENT {
            return Err(wrong(format!("a document of {} bytes; {MAX_DOCUMENT} is the limit", at.size)));
        }
        let mut bytes = vec![0; at.size as usize];
        self.file.read_exact_at(&mut bytes, at.offset).context("read the archive")?;
        Ok(bytes)
    }

    fn find(&self, digest: &Digest) -> Result<Extent> {
        let in_layout = || self.entries.get(&Path::new("blobs/sha256").join(digest.hex()));
        self.blobs.get(digest).or_else(in_layout).copied().ok_or_else(|| wrong(format!("blob {digest} is missing")))
    }

    /// A manifest or config, checked.
    pub(super) fn by_digest(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.document(self.find(digest)?)?;
        if Digest::of(Sha256::digest(&bytes)) == *digest {
            return Ok(bytes);
        }
        Err(wrong(format!("blob {digest} is damaged")))
    }

    /// A layer, which who unpacks it checks.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Blob> {
        let Extent { offset, size } = self.find(digest)?;
        let file = self.file.try_clone().context("duplicate a descriptor")?;
        Ok(Blob { file, offset, left: size })
    }

    fn is_plain(&self, at: Extent) -> Result<bool> {
        let mut head = [0; 4];
        let length = self.file.read_at(&mut head, at.offset).context("read the archive")?;
        Ok(!(head[..length].starts_with(&GZIP) || head[..length].starts_with(&ZSTD)))
    }

    fn digest(&self, at: Extent) -> Result<Digest> {
        let mut blob =
            Blob { file: self.file.try_clone().context("duplicate a descriptor")?, offset: at.offset, left: at.size };
        let mut hash = Sha256::new();
        while let Some(chunk) = blob.next()? {
            hash.update(&chunk);
        }
        Ok(Digest::of(hash.finalize()))
    }
}

/// The bytes of one layer.
#[derive(Debug)]
pub(super) struct Blob {
    file: File,
    offset: u64,
    left: u64,
}

impl Source for Blob {
    fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        if chunk.is_empty() {
            return Ok(None);
        }
        self.file.read_exact_at(&mut chunk, self.offset).context("read the archive")?;
        self.offset += chunk.len() as u64;
        self.left -= chunk.len() as u64;
        Ok(Some(chunk.into()))
    }
}

/// containerd's annotation has the whole name. OCI's has it too, with some tools, and with others only a tag, which names nothing.
fn name_of(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    let whole = annotations.get("io.containerd.image.name");
    let name = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    whole.or(name).map(String::as_str)
}

/// Every file of the tar, by its path without `./`; links to files are those files.
fn index(file: &File) -> Result<HashMap<PathBuf, Extent>> {
    let mut file = file.try_clone().context("duplicate a descriptor")?;
    file.seek(SeekFrom::Start(0)).context("read the archive")?;
    let length = file.metadata().context("stat the archive")?.len();
    let (mut entries, mut links) = (HashMap::new(), Vec::new());
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries_with_seek().map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if entries.len() + links.len() >= MAX_ENTRIES {
            return Err(wrong(format!("more than {MAX_ENTRIES} entries")));
        }
        let path = normal(Path::new(""), &entry.path().map_err(wrong)?);
        let at = Extent { offset: entry.raw_file_position(), size: entry.size() };
        if at.offset.checked_add(at.size).is_none_or(|end| end > length) {
            return Err(wrong(format!("it ends within {}", path.display())));
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => drop(entries.insert(path, at)),
            kind @ (EntryType::Symlink | EntryType::Link) => {
                if let Some(target) = entry.link_name().map_err(wrong)? {
                    let base =
                        if kind == EntryType::Link { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
                    let target = normal(base, &target);
                    links.push((path, target));
                }
            }
            _ => {}
        }
    }
    for (path, target) in links {
        if let Some(at) = entries.get(&target).copied() {
            entries.insert(path, at);
        }
    }
    Ok(entries)
}

/// `path` seen from `base`, both in the archive.
fn normal(base: &Path, path: &Path) -> PathBuf {
    let mut whole = base.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => whole.push(name),
            Component::ParentDir => drop(whole.pop()),
            Component::RootDir => whole = PathBuf::new(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    whole
}

/// A file without a name: gone with its descriptor, whatever happens.
fn tempfile_in(directory: &Path) -> Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR);
    Ok(file.map(File::from).with_context(|| format!("make a file in {}", directory.display()))?)
}

/// What cannot be read is the archive's fault, what cannot be written the disk's.
fn copy_all(from: &mut dyn Read, to: &mut File) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => io::Write::write_all(to, &buffer[..length]).context("copy the archive")?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(wrong(error)),
        }
    }
}
