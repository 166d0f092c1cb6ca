//! Manifests: which one in an index is for this machine, and which layers an image has.

use std::path::PathBuf;

use anyhow::anyhow;
use berth_base::error::{Error, Result};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};

use crate::{
    digest::Digest,
    layer_key::{LayerKeys, layer_keys},
};

/// The limit of Docker's builders. overlayfs would take 500 lower directories, but an image that
/// runs here should run elsewhere too.
const MAX_LAYERS: usize = 127;

/// The manifest of one image, parsed and as bytes.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Digest of the document that the name refers to: the index if there is one, else this
    /// manifest.
    pub top: Digest,
    pub descriptor: Descriptor,
    pub manifest: ImageManifest,
    pub bytes: Vec<u8>,
}

impl Manifest {
    /// # Errors
    /// `FailedPrecondition` if the document is not an image manifest.
    pub(super) fn parse(top: Digest, media_type: &str, bytes: Vec<u8>) -> Result<Self> {
        let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(|error| {
            Error::precondition(format!("not an image manifest ({media_type}): {error}"))
        })?;
        // Computed from the bytes and not taken from an index or a header, because the manifest is
        // stored under this digest.
        let digest: oci_spec::image::Digest = Digest::sha256(&bytes)
            .as_str()
            .parse()
            .map_err(|error| anyhow!("digest of the manifest: {error}"))?;
        let descriptor = Descriptor::new(media_type.into(), bytes.len() as u64, digest);
        Ok(Self { top, descriptor, manifest, bytes })
    }

    /// The digest of this manifest. It equals `top` only if there is no index.
    pub(super) fn digest(&self) -> Result<Digest> {
        digest_of(&self.descriptor)
    }
}

/// What the manifest and the config say about one layer.
#[derive(Clone, Debug)]
pub(super) struct LayerDescriptor {
    /// Digest of the blob as the registry has it, which is usually compressed.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the uncompressed tar in the blob.
    pub diff_id: Digest,
    pub keys: LayerKeys,
    /// Set if the blob is not a tar but the file of an OCI artifact: the name of that file.
    pub file: Option<PathBuf>,
}

/// The layers of an image, bottom first. `files` contains, for each blob, the file name if the blob
/// is a file.
///
/// # Errors
/// `FailedPrecondition` if the documents contradict each other, or for too many layers.
pub(super) fn layer_descriptors(
    manifest: &ImageManifest,
    config: &ImageConfiguration,
    files: Vec<Option<PathBuf>>,
) -> Result<Vec<LayerDescriptor>> {
    let blobs = manifest.layers();
    let diff_ids = config.rootfs().diff_ids();
    // The two lists are in different documents. Only their order tells which diff-id belongs to
    // which blob.
    if blobs.len() != diff_ids.len() {
        return Err(Error::precondition(format!(
            "the manifest has {} layers and the config {}",
            blobs.len(),
            diff_ids.len()
        )));
    }
    if blobs.len() > MAX_LAYERS {
        return Err(Error::precondition(format!(
            "the image has {} layers; {MAX_LAYERS} is the limit",
            blobs.len()
        )));
    }
    let mut layers = Vec::new();
    // All lists have the same length, so zip does not cut any of them short.
    for (((blob, file), diff_id), keys) in
        blobs.iter().zip(files).zip(diff_ids).zip(layer_keys(config)?)
    {
        layers.push(LayerDescriptor {
            blob: digest_of(blob)?,
            size: blob.size(),
            diff_id: Digest::parse(diff_id)?,
            keys,
            file,
        });
    }
    Ok(layers)
}

/// Chooses the manifest for this machine from an index. `None` if `bytes` is not an index.
///
/// Only the content decides whether a document is an index. A registry's Content-Type is often
/// wrong, and the same bytes must not be an index to one reader and a manifest to another
/// (CVE-2021-41190).
///
/// # Errors
/// `NotFound`, with the platforms that there are, if none of them is this one;
/// `FailedPrecondition` if the index cannot be parsed.
pub(super) fn choose_from_index(bytes: &[u8]) -> Result<Option<Descriptor>> {
    // Parsed as arbitrary JSON first, so that a malformed index is reported as such and not as a
    // malformed manifest.
    let is_index = serde_json::from_slice::<serde_json::Value>(bytes)
        .is_ok_and(|value| value.get("manifests").is_some());
    if !is_index {
        return Ok(None);
    }
    let index: ImageIndex = serde_json::from_slice(bytes)
        .map_err(|error| Error::precondition(format!("image index: {error}")))?;
    match choose(index.manifests()) {
        Some(chosen) => Ok(Some(chosen.clone())),
        None => Err(Error::not_found(format!(
            "no image for linux/{}; there is {}",
            architecture(),
            platforms(&index).join(", ")
        ))),
    }
}

/// The first manifest for Linux on this architecture, or else the first one without a platform,
/// which may be for any machine.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    manifests
        .iter()
        .find(|descriptor| descriptor.platform().is_some() && matches_platform(descriptor))
        .or_else(|| manifests.iter().find(|descriptor| descriptor.platform().is_none()))
}

/// `os/architecture` of each manifest that says it.
fn platforms(index: &ImageIndex) -> Vec<String> {
    index
        .manifests()
        .iter()
        .filter_map(|manifest| manifest.platform().as_ref())
        .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
        .collect()
}

/// Whether a descriptor is for Linux on this architecture, or does not say what it is for.
pub(super) fn matches_platform(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_none_or(|platform| {
        platform.os().to_string() == "linux"
            && platform.architecture().to_string() == architecture()
    })
}

/// This machine's architecture as images name it, which is Go's GOARCH.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// # Errors
/// `InvalidArgument` for a digest of another algorithm than sha256.
pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    Digest::parse(descriptor.digest().as_ref())
}
