//! OCI artifacts: manifests whose blobs are files and not layers, such as models and charts
//! (image-spec manifest.md, "Guidelines for Artifact Usage").
//!
//! Pods can mount artifacts like images (KEP 4639). So an artifact becomes an image with one layer
//! for each blob, and that layer contains one file.

use std::path::PathBuf;

use anyhow::Context;
use berth_base::error::{Error, Result};
use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;

use crate::{
    digest::Digest,
    documents::{self, MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, descriptor},
    manifest::{Manifest, architecture, digest_of},
    unpack::{file_diff_id, relative_path},
};

/// The annotation with the file name of a blob, as set by ORAS and others.
const TITLE: &str = "org.opencontainers.image.title";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What makes an artifact an image.
#[derive(Debug)]
pub(super) struct Artifact {
    /// An image config, generated for it.
    pub config: Vec<u8>,
    /// The name of each blob's file, in the order of the manifest.
    pub files: Vec<PathBuf>,
}

impl Artifact {
    /// Converts the manifest of an artifact into that of an image, and returns what belongs to it.
    /// The manifest of an image is returned as it is.
    ///
    /// # Errors
    /// `FailedPrecondition` for a title that is not a relative path below the root.
    pub(super) fn convert(manifest: Manifest) -> Result<(Manifest, Option<Self>)> {
        if is_image(&manifest) {
            return Ok((manifest, None));
        }
        let blobs = manifest.manifest.layers();
        let mut files = Vec::new();
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for blob in blobs {
            let file = file_name(blob)?;
            diff_ids.push(file_diff_id(&file, &digest_of(blob)?).to_string());
            layers.push(serde_json::to_value(blob).context("descriptor of a blob")?);
            files.push(file);
        }
        // Generated from the artifact alone, so that the image id is the same on every node.
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let described =
            descriptor(MEDIA_TYPE_CONFIG, &Digest::sha256(&config), config.len() as u64);
        let bytes = documents::manifest(&described, &layers);
        // `top` stays the registry's digest: the image is stored under it, so that the next pull
        // can tell that nothing has changed.
        let converted = Manifest::parse(manifest.top, MEDIA_TYPE_MANIFEST, bytes)?;
        Ok((converted, Some(Self { config, files })))
    }
}

/// An image is recognized by the media type of its config. Everything else is an artifact.
fn is_image(manifest: &Manifest) -> bool {
    let config = manifest.manifest.config().media_type();
    *config == MediaType::ImageConfig || config.to_string() == DOCKER_CONFIG
}

/// The file name of a blob: its title, or its digest if it has none.
fn file_name(blob: &Descriptor) -> Result<PathBuf> {
    let title = blob.annotations().as_ref().and_then(|annotations| annotations.get(TITLE));
    let Some(title) = title.filter(|title| !title.is_empty()) else {
        return Ok(digest_of(blob)?.hex().into());
    };
    // Titles come from the registry and are as hostile as names in a tar.
    let path = relative_path(title.as_bytes())
        .map_err(|error| Error::from(error).during(format!("title {title:?}")))?;
    match path.as_os_str().is_empty() {
        true => Err(Error::precondition(format!("title {title:?} is not a file name"))),
        false => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn manifest(config: &str, title: Option<&str>) -> Manifest {
        let digest = Digest::parse(&format!("sha256:{}", "07".repeat(32))).unwrap();
        let mut layer = json!({ "mediaType": "text/plain", "digest": digest.as_str(), "size": 5 });
        if let Some(title) = title {
            layer["annotations"] = json!({ TITLE: title });
        }
        let text = json!({
            "schemaVersion": 2, "layers": [layer],
            "config": { "mediaType": config, "digest": digest.as_str(), "size": 2 },
        });
        Manifest::parse(digest, MEDIA_TYPE_MANIFEST, text.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn what_has_an_images_config_is_an_image() {
        for (config, artifact) in [
            (MEDIA_TYPE_CONFIG, false),
            (DOCKER_CONFIG, false),
            ("application/vnd.oci.empty.v1+json", true),
            ("application/vnd.cncf.helm.config.v1+json", true),
        ] {
            let converted = Artifact::convert(manifest(config, None)).unwrap().1;
            assert_eq!(converted.is_some(), artifact, "{config}");
        }
    }

    #[test]
    fn titles_stay_inside() {
        let named = |title| {
            let artifact = Artifact::convert(manifest("text/plain", title))?.1;
            Ok::<_, Error>(artifact.unwrap().files.remove(0))
        };
        assert_eq!(named(Some("a/./b.txt")).unwrap(), Path::new("a/b.txt"));
        assert_eq!(named(None).unwrap(), Path::new(&"07".repeat(32)));
        for title in ["/etc/passwd", "../x", "a/../../x", "."] {
            assert!(named(Some(title)).is_err(), "{title}");
        }
    }
}
