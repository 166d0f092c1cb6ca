//! What of an image's layers was removed with it.

use std::collections::HashMap;

use berth_base::error::Result;

use crate::{
    digest::Digest,
    layer_key::LayerKey,
    store::{Collected, Image},
};

/// A layer that nothing needed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedLayer {
    pub chain_id: Digest,
    /// What it occupied on disk.
    pub bytes: u64,
}

/// Those of the collected layers that were of `image`, topmost first.
///
/// # Errors
/// Those of `Image::layers_by_chain_id`.
pub(super) fn of_image(image: &Image, collected: Vec<Collected>) -> Result<Vec<RemovedLayer>> {
    let collected: HashMap<LayerKey, u64> =
        collected.into_iter().map(|layer| (layer.key, layer.bytes)).collect();
    let layers = image.layers_by_chain_id()?.into_iter();
    let removed = layers.filter_map(|(chain_id, key)| {
        Some(RemovedLayer { chain_id, bytes: *collected.get(&key)? })
    });
    Ok(removed.collect())
}
