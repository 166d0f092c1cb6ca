//! Writes the documents of the OCI image specification: descriptors, manifests and indexes.
//!
//! A pulled image keeps the manifest that the registry sent, byte for byte. berth writes one only
//! where there is none: for docker-archives, for OCI artifacts, and for exported images, whose
//! layers are not compressed as the original manifest says.

use serde_json::{Value, json};

use crate::digest::Digest;

/// The distribution specification's limit for manifests. It applies to configs and to documents in
/// archives as well: without a limit, a hostile document could use up the node's memory
/// (CVE-2023-25153).
pub(super) const MAX_DOCUMENT: usize = 4 << 20;

pub(super) const MEDIA_TYPE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const MEDIA_TYPE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const MEDIA_TYPE_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MEDIA_TYPE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The content of the file `oci-layout`, which marks a directory or archive as an OCI image layout.
pub(super) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The annotation for the name of an image in an index. podman and skopeo read this one.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The same for containerd and nerdctl.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

pub(super) fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size })
}

/// An image manifest; `layers` are descriptors, bottom first.
pub(super) fn manifest(config: &Value, layers: &[Value]) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": config,
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// An image index; `manifests` are descriptors.
pub(super) fn index(manifests: &[Value]) -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_INDEX,
        "manifests": manifests,
    });
    index.to_string().into_bytes()
}
