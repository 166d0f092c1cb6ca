//! OCI artifacts: manifests whose blobs are files and not layers, such as models and charts (image-spec manifest.md, "Guidelines for
//! Artifact Usage"). Pods mount them as images (KEP 4639), so that is what they become: a layer for each blob, with one file in it.

use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    manifest::{Manifest, architecture, digest, digest_of},
    reference::Digest,
    unpack,
};
use crate::error::{Error, Result};

/// What the field's tools (ORAS) call a blob's file.
const TITLE: &str = "org.opencontainers.image.title";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What stands in for documents of the registry.
#[derive(Debug)]
pub(super) struct Artifact {
    pub config: Vec<u8>,
    /// What each blob is called, in the order of the manifest.
    pub files: Vec<PathBuf>,
}

/// An artifact in the terms of an image: a manifest of berth's own, which no registry has, but for its `top`. `None` for an image.
///
/// # Errors
/// `FailedPrecondition` for a title that leads out of the directory that it is in.
pub(super) fn of(found: &Manifest) -> Result<Option<(Manifest, Artifact)>> {
    let config = found.manifest.config().media_type();
    if *config == MediaType::ImageConfig || config.to_string() == DOCKER_CONFIG {
        return Ok(None);
    }
    let blobs = found.manifest.layers();
    let files: Vec<PathBuf> = blobs.iter().map(file).collect::<Result<_>>()?;
    let mut diff_ids = Vec::new();
    for (file, blob) in files.iter().zip(blobs) {
        diff_ids.push(diff_id(file, &digest_of(blob)?).to_string());
    }
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": blobs,
        "config": { "mediaType": OCI_CONFIG, "digest": digest(&config).as_str(), "size": config.len() },
    });
    let manifest = Manifest::parse(found.top.clone(), OCI_MANIFEST, manifest.to_string().into_bytes())?;
    Ok(Some((manifest, Artifact { config, files })))
}

/// A blob without a title is called by its digest.
fn file(blob: &Descriptor) -> Result<PathBuf> {
    let title = blob.annotations().as_ref().and_then(|annotations| annotations.get(TITLE));
    let Some(title) = title.filter(|title| !title.is_empty()) else { return Ok(digest_of(blob)?.hex().into()) };
    let path =
        unpack::inside(title.as_bytes()).map_err(|error| Error::from(error).during(format!("title {title:?}")))?;
    match path.as_os_str().is_empty() {
        true => Err(Error::precondition(format!("title {title:?} is no name of a file"))),
        false => Ok(path),
    }
}

/// Stands for a diff-id: the same file under the same name is the same layer, and no tar's.
pub(super) fn diff_id(file: &Path, blob: &Digest) -> Digest {
    use std::os::unix::ffi::OsStrExt;
    let mut hash = Sha256::new();
    hash.update(b"a file and its name\0");
    hash.update(file.as_os_str().as_bytes());
    hash.update([0]);
    hash.update(blob.as_str());
    Digest::of(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(config: &str, title: Option<&str>) -> Manifest {
        let digest = Digest::of([7; 32]);
        let mut layer = json!({ "mediaType": "text/plain", "digest": digest.as_str(), "size": 5 });
        if let Some(title) = title {
            layer["annotations"] = json!({ TITLE: title });
        }
        let text = json!({
            "schemaVersion": 2, "layers": [layer],
            "config": { "mediaType": config, "digest": digest.as_str(), "size": 2 },
        });
        Manifest::parse(digest, OCI_MANIFEST, text.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn what_has_an_images_config_is_an_image() {
        for (config, artifact) in [
            (OCI_CONFIG, false),
            (DOCKER_CONFIG, false),
            ("application/vnd.oci.empty.v1+json", true),
            ("application/vnd.cncf.helm.config.v1+json", true),
        ] {
            assert_eq!(of(&manifest(config, None)).unwrap().is_some(), artifact, "{config}");
        }
    }

    #[test]
    fn titles_stay_inside() {
        let named = |title| of(&manifest("text/plain", title)).map(|artifact| artifact.unwrap().1.files.remove(0));
        assert_eq!(named(Some("a/./b.txt")).unwrap(), Path::new("a/b.txt"));
        assert_eq!(named(None).unwrap(), Path::new(&"07".repeat(32)));
        for title in ["/etc/passwd", "../x", "a/../../x", "."] {
            assert!(named(Some(title)).is_err(), "{title}");
        }
    }

    #[test]
    fn the_same_file_under_another_name_is_another_layer() {
        let blob = Digest::of([1; 32]);
        assert_eq!(diff_id(Path::new("a"), &blob), diff_id(Path::new("a"), &blob));
        assert_ne!(diff_id(Path::new("a"), &blob), diff_id(Path::new("b"), &blob));
        assert_ne!(diff_id(Path::new("a"), &blob), blob);
    }
}
