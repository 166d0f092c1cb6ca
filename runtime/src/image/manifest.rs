//! Manifests: which one is for this machine, and what it says.

use anyhow::anyhow;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use sha2::Digest as _;

use super::reference::Digest;
use crate::error::{Error, Result};

/// One image's manifest, as it came.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Digest of what the name led to: the index, if there is one.
    pub top: Digest,
    pub descriptor: Descriptor,
    pub manifest: ImageManifest,
    pub bytes: Vec<u8>,
}

impl Manifest {
    /// # Errors
    /// `FailedPrecondition` for what is no manifest.
    pub(super) fn parse(top: Digest, media_type: &str, bytes: Vec<u8>) -> Result<Self> {
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::precondition(format!("not an image manifest ({media_type}): {error}")))?;
        let own = digest(&bytes);
        let own: oci_spec::image::Digest = own.as_str().parse().map_err(|error| anyhow!("digest: {error}"))?;
        let descriptor = Descriptor::new(media_type.into(), bytes.len() as u64, own);
        Ok(Self { top, descriptor, manifest, bytes })
    }
}

/// What an index has for this machine; `None` if `bytes` are no index. A registry's Content-Type is often wrong: what tells an index
/// from a manifest is what is in it.
///
/// # Errors
/// `NotFound` with what there is instead, `FailedPrecondition` for an index that cannot be read.
pub(super) fn choose_from_index(bytes: &[u8]) -> Result<Option<Descriptor>> {
    let is_index =
        serde_json::from_slice::<serde_json::Value>(bytes).is_ok_and(|value| value.get("manifests").is_some());
    if !is_index {
        return Ok(None);
    }
    let index: ImageIndex =
        serde_json::from_slice(bytes).map_err(|error| Error::precondition(format!("image index: {error}")))?;
    let chosen = choose(index.manifests()).cloned();
    chosen.map(Some).ok_or_else(|| {
        let platforms = index.manifests().iter().filter_map(|manifest| manifest.platform().as_ref());
        let platforms: Vec<String> = platforms.map(|p| format!("{}/{}", p.os(), p.architecture())).collect();
        Error::not_found(format!("no image for linux/{}; there is {}", architecture(), platforms.join(", ")))
    })
}

/// The first manifest for Linux on this architecture; one without a platform serves where nothing else does.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let certain = |descriptor: &&Descriptor| descriptor.platform().is_some() && fits(descriptor);
    manifests.iter().find(certain).or_else(|| manifests.iter().find(|descriptor| descriptor.platform().is_none()))
}

/// Whether it may be for Linux on this architecture.
pub(super) fn fits(descriptor: &Descriptor) -> bool {
    let platform = descriptor.platform().as_ref();
    platform.is_none_or(|p| p.os().to_string() == "linux" && p.architecture().to_string() == architecture())
}

pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(sha2::Sha256::digest(bytes))
}

pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    Digest::parse(descriptor.digest().as_ref())
}
