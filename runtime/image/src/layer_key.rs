//! The names of layers on disk.
//!
//! Most layers are named by their diff-id, the digest of the uncompressed tar. Images that contain
//! the same tar then share its files, whatever the layers below it are. But a tar may leave out the
//! entries of parent directories, whose owner and mode then come from the layers below. The same
//! tar gives different files on different parents in that case, so such a layer is named by its
//! chain-id (OCI image specification, config.md, "Layer ChainID").

use std::{fmt, path::Path};

use berth_base::error::Result;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The name of a layer's directory: `<hex diff-id>`, `chain-<hex chain-id>` or `empty`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerKey(String);

impl LayerKey {
    /// The layer of images that have no layers, because overlayfs needs at least one lower
    /// directory.
    pub(super) fn empty() -> Self {
        Self("empty".to_owned())
    }

    /// The key of an existing directory of the store.
    pub(super) fn of_directory(name: String) -> Self {
        Self(name)
    }

    pub(super) fn is_empty_layer(&self) -> bool {
        self.0 == "empty"
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for LayerKey {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

/// The two names that a layer of an image may have. Which one applies is known only after the layer
/// has been unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[LayerKey; 2]", into = "[LayerKey; 2]")]
pub(super) struct LayerKeys {
    /// By the diff-id.
    pub diff: LayerKey,
    /// By the chain-id.
    pub chain: LayerKey,
}

impl LayerKeys {
    /// In the order in which a layer is looked up: most layers have the first name.
    pub(super) fn each(&self) -> [&LayerKey; 2] {
        [&self.diff, &self.chain]
    }

    fn new(diff_id: &Digest, chain_id: &Digest) -> Self {
        Self {
            diff: LayerKey(diff_id.hex().to_owned()),
            chain: LayerKey(format!("chain-{}", chain_id.hex())),
        }
    }

    /// Of a layer that is the lowest of its image.
    pub(super) fn of_lowest(diff_id: &Digest) -> Self {
        Self::new(diff_id, diff_id)
    }
}

impl From<[LayerKey; 2]> for LayerKeys {
    fn from([diff, chain]: [LayerKey; 2]) -> Self {
        Self { diff, chain }
    }
}

impl From<LayerKeys> for [LayerKey; 2] {
    fn from(keys: LayerKeys) -> Self {
        [keys.diff, keys.chain]
    }
}

/// The chain-id of a layer on what is below it.
pub(super) fn chain_id(below: Option<&Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => Digest::sha256(format!("{below} {diff_id}")),
    }
}

/// The keys that the layers of an image may have, bottom first.
///
/// # Errors
/// `InvalidArgument` if a diff-id is not a digest.
pub(super) fn layer_keys(config: &ImageConfiguration) -> Result<Vec<LayerKeys>> {
    let mut below: Option<Digest> = None;
    let mut keys = Vec::new();
    for text in config.rootfs().diff_ids() {
        let diff_id = Digest::parse(text)?;
        let chain_id = chain_id(below.as_ref(), diff_id.clone());
        keys.push(LayerKeys::new(&diff_id, &chain_id));
        below = Some(chain_id);
    }
    Ok(keys)
}
