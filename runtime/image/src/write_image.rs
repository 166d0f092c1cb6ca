//! Writes an image that is from no registry: of layers that are here, and of a config.

use std::sync::Arc;

use anyhow::Context;
use berth_base::{
    clock::now,
    error::{Error, Result},
    observe::{step_blocking, steps::write_image},
};
use oci_spec::image::{Descriptor, ImageConfiguration};
use serde_json::{Value, json};

use crate::{
    digest::Digest,
    documents::{self, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST, descriptor},
    manifest::{Manifest, layer_descriptors},
    store::{Image, Nameless, NewImage, Origin, Store},
    write_layer::WrittenLayer,
};

/// An image that is to be written.
#[derive(Debug)]
pub struct ImageToWrite {
    /// Whose layers come first, and which is noted as its parent. `None` for an image of these
    /// layers alone.
    pub parent: Option<Arc<Image>>,
    /// On top of those of the parent, bottom first.
    pub layers: Vec<WrittenLayer>,
    /// Its config document, whose digest is the id. Its diff-ids are those of all of these layers.
    pub config: Vec<u8>,
    /// In full, with tags. Images that have them lose them. Without any the image has no name.
    pub names: Vec<String>,
}

/// Adds an image. Blocks.
///
/// # Errors
/// `FailedPrecondition` if the parent is damaged or being removed, or there are too many layers;
/// `ResourceExhausted` if the disk is full; `Internal` for a config of other layers.
pub(super) fn write_image(store: &Store, image: ImageToWrite) -> Result<Arc<Image>> {
    let ImageToWrite { parent, layers, config: config_bytes, names } = image;
    // Until it is in the index, and the index keeps them.
    let lease = match &parent {
        Some(parent) => Some(store.layers.lease(&parent.layers).ok_or_else(|| {
            Error::precondition(format!("{} is damaged, or is being removed", parent.id))
        })?),
        None => None,
    };
    let config: ImageConfiguration =
        serde_json::from_slice(&config_bytes).context("the config is not an image's")?;
    let manifest = manifest(store, parent.as_deref(), &layers, &config_bytes)?;
    // The same checks as after a pull.
    let descriptors = layer_descriptors(
        &manifest.manifest,
        &config,
        vec![None; manifest.manifest.layers().len()],
    )?;
    let written = descriptors.iter().rev().map(|layer| &layer.diff_id).take(layers.len());
    if !written.eq(layers.iter().rev().map(|layer| &layer.diff_id)) {
        return Err(anyhow::anyhow!("the config is of other layers").into());
    }
    let origin = Origin {
        parent: parent.map(|parent| parent.id.clone()),
        tagged_at: (!names.is_empty()).then(now),
    };
    let image = step_blocking(write_image::ADD, || {
        store.add(NewImage {
            names: &names,
            manifest: &manifest,
            config,
            config_bytes: &config_bytes,
            displaced: Nameless::Kept,
            origin,
        })
    })?;
    drop(lease);
    drop(layers);
    tracing::info!(id = %image.id, images = ?names, layers = image.layers.len(), "written");
    Ok(image)
}

/// The manifest, which has the layers of the parent as that one's has them: what is the same in a
/// registry need not be sent there.
fn manifest(
    store: &Store,
    parent: Option<&Image>,
    layers: &[WrittenLayer],
    config: &[u8],
) -> Result<Manifest> {
    let below = match parent {
        Some(parent) => store.layers_of(&parent.id)?,
        None => Vec::new(),
    };
    let written =
        layers.iter().map(|layer| descriptor(MEDIA_TYPE_LAYER, &layer.diff_id, layer.length));
    let all: Vec<Value> = below.iter().map(inherited).chain(written).collect();
    let config = descriptor(MEDIA_TYPE_CONFIG, &Digest::sha256(config), config.len() as u64);
    let bytes = documents::manifest(&config, &all);
    Manifest::parse(Digest::sha256(&bytes), MEDIA_TYPE_MANIFEST, bytes)
}

/// A layer of a parent, whose manifest may be of docker's form.
fn inherited(layer: &Descriptor) -> Value {
    let media_type = match layer.media_type().to_string().as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{MEDIA_TYPE_LAYER}+gzip"),
        other => other.to_owned(),
    };
    json!({
        "mediaType": media_type,
        "digest": layer.digest().to_string(),
        "size": layer.size(),
    })
}
