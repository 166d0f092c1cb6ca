//! The paths of everything that the store keeps on disk.

use std::path::PathBuf;

use crate::{digest::Digest, layer_key::LayerKey};

/// The store's two directories. They must be on the same filesystem.
#[derive(Clone, Debug)]
pub struct StoreLayout {
    pub images: PathBuf,
    pub layers: PathBuf,
}

impl StoreLayout {
    /// The file that marks `images` as an OCI image layout.
    pub(super) fn oci_layout(&self) -> PathBuf {
        self.images.join("oci-layout")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.images.join("index.json")
    }

    /// The index as of the last sync.
    pub(super) fn synced_index(&self) -> PathBuf {
        self.images.join("index.json.synced")
    }

    /// The index that becomes the synced one when the running sync has finished.
    pub(super) fn syncing_index(&self) -> PathBuf {
        self.images.join("index.json.syncing")
    }

    /// Where a damaged index is set aside.
    pub(super) fn damaged_index(&self) -> PathBuf {
        self.images.join("index.json.damaged")
    }

    /// Manifests and configs.
    pub(super) fn blobs(&self) -> PathBuf {
        self.images.join("blobs/sha256")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Resume states.
    pub(super) fn pulls(&self) -> PathBuf {
        self.images.join("pulls")
    }

    /// The resume state of the pull of the image `name`. Hashed, because names contain slashes and
    /// may be longer than a file name.
    pub(super) fn pull(&self, name: &str) -> PathBuf {
        self.pulls().join(format!("{}.json", Digest::sha256(name).hex()))
    }

    /// Partial blobs.
    pub(super) fn partial(&self) -> PathBuf {
        self.images.join("partial")
    }

    pub(super) fn layer(&self, key: &LayerKey) -> PathBuf {
        self.layers.join(key)
    }
}
