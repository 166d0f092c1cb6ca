//! Archives as `docker save` writes them.

use berth_base::error::Result;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::{
    image::ArchivedImage,
    reader::{ArchiveReader, wrong},
};
use crate::{
    compression::Compression,
    digest::Digest,
    documents::{self, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST, descriptor},
    manifest::Manifest,
    reference::Reference,
};

/// The file that makes a tar a docker-archive.
pub(super) const MANIFEST: &str = "manifest.json";

/// An element of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    /// Path of the config within the archive.
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// Paths of the layers within the archive, bottom first.
    layers: Vec<String>,
}

/// The images of the archive. It has no manifests in the sense of registries, so they are
/// generated.
///
/// # Errors
/// `InvalidArgument` for documents that are missing or damaged.
pub(super) fn images(archive: &mut ArchiveReader) -> Result<Vec<ArchivedImage>> {
    let bytes = archive.document(archive.entry(MANIFEST)?)?;
    let saved: Vec<SavedImage> =
        serde_json::from_slice(&bytes).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    saved.into_iter().map(|saved| image(archive, saved)).collect()
}

fn image(archive: &mut ArchiveReader, saved: SavedImage) -> Result<ArchivedImage> {
    let at = archive.entry(&saved.config)?;
    let config_bytes = archive.document(at)?;
    let config: ImageConfiguration = serde_json::from_slice(&config_bytes)
        .map_err(|error| wrong(format!("{} is not an image's config: {error}", saved.config)))?;
    let config_digest = Digest::sha256(&config_bytes);
    // In this format entries are found by path, while all further steps look them up by digest.
    archive.name_blob(config_digest.clone(), at);
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != saved.layers.len() {
        return Err(wrong(format!(
            "{} layers, and {} in the config",
            saved.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
        let at = archive.entry(path)?;
        // The digest of an uncompressed layer is its diff-id, which is verified when the layer is
        // unpacked. That of a compressed layer is not in the archive, so the layer is read to
        // compute it.
        let digest = match archive.compression(at)? {
            Compression::None => Digest::parse(diff_id)?,
            Compression::Gzip | Compression::Zstd => archive.digest(at)?,
        };
        layers.push(descriptor(MEDIA_TYPE_LAYER, &digest, at.size));
        archive.name_blob(digest, at);
    }
    let config = descriptor(MEDIA_TYPE_CONFIG, &config_digest, at.size);
    let bytes = documents::manifest(&config, &layers);
    let mut references = Vec::new();
    for tag in saved.repo_tags.unwrap_or_default() {
        references.push(Reference::parse(&tag).map_err(wrong)?);
    }
    let manifest = Manifest::parse(Digest::sha256(&bytes), MEDIA_TYPE_MANIFEST, bytes)?;
    Ok(ArchivedImage { references, manifest, made_here: true })
}
