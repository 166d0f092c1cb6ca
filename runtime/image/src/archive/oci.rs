//! Archives that are OCI image layouts.

use std::collections::BTreeMap;

use berth_base::error::Result;
use oci_spec::image::{Descriptor, ImageIndex};

use super::{
    image::ArchivedImage,
    reader::{ArchiveReader, wrong},
};
use crate::{
    digest::Digest,
    documents::{CONTAINERD_NAME, REF_NAME},
    manifest::{Manifest, choose_from_index, digest_of, matches_platform},
    reference::Reference,
};

/// The file that makes a tar an OCI image layout.
pub(super) const INDEX: &str = "index.json";

/// The images for this machine, in the order of the index.
///
/// # Errors
/// `InvalidArgument` for documents that are missing or damaged.
pub(super) fn images(archive: &ArchiveReader) -> Result<Vec<ArchivedImage>> {
    let bytes = archive.document(archive.entry(INDEX)?)?;
    let index: ImageIndex =
        serde_json::from_slice(&bytes).map_err(|error| wrong(format!("{INDEX}: {error}")))?;
    let mut images: Vec<ArchivedImage> = Vec::new();
    let mut places: BTreeMap<Digest, usize> = BTreeMap::new();
    for descriptor in index.manifests() {
        // Skips images for other platforms, and attestations, whose platform is `unknown`.
        if !matches_platform(descriptor) {
            continue;
        }
        let top = digest_of(descriptor)?;
        let name = name_of(descriptor).map(Reference::parse).transpose().map_err(wrong)?;
        // An index contains a manifest several times if it has several names.
        match places.get(&top) {
            Some(place) => images[*place].references.extend(name),
            None => {
                let manifest = find_manifest(archive, &top, descriptor)?;
                let references = name.into_iter().collect();
                images.push(ArchivedImage { references, manifest, made_here: false });
                places.insert(top, images.len() - 1);
            }
        }
    }
    Ok(images)
}

/// The manifest that a descriptor refers to, directly or through an index of platforms.
fn find_manifest(
    archive: &ArchiveReader,
    top: &Digest,
    descriptor: &Descriptor,
) -> Result<Manifest> {
    let bytes = archive.by_digest(top)?;
    match choose_from_index(&bytes)? {
        None => Manifest::parse(top.clone(), descriptor.media_type().as_ref(), bytes),
        Some(chosen) => {
            let bytes = archive.by_digest(&digest_of(&chosen)?)?;
            Manifest::parse(top.clone(), chosen.media_type().as_ref(), bytes)
        }
    }
}

/// The name of an image. containerd's annotation is always a full name. OCI's is one with some
/// tools, and with others only a tag, which is not enough.
fn name_of(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    let name = annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']));
    annotations.get(CONTAINERD_NAME).or(name).map(String::as_str)
}
