//! The manifest that a push writes where there is none with these blobs.

use oci_spec::image::ImageManifest;
use serde::Serialize;
use serde_json::{Serializer, ser::PrettyFormatter};

use super::blob::Blob;
use crate::{
    compression::Compression,
    digest::Digest,
    documents::{MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST},
    manifest::digest_of,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// dockerd indents by this: the same blobs give the same digest there and here.
const INDENT: &[u8] = b"   ";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Described<'a>,
    layers: Vec<Described<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described<'a> {
    media_type: &'a str,
    size: u64,
    digest: &'a str,
}

/// A manifest of these blobs, the lowest layer first, and its media type. It is docker's as far as
/// docker has media types for the layers, since every registry takes that.
pub(super) fn manifest(config: (&Digest, u64), blobs: &[Blob]) -> (&'static str, Vec<u8>) {
    let is_dockers = blobs.iter().all(|blob| blob.compression == Compression::Gzip);
    let (manifest, config_type) = match is_dockers {
        true => (DOCKER_MANIFEST, DOCKER_CONFIG),
        false => (MEDIA_TYPE_MANIFEST, MEDIA_TYPE_CONFIG),
    };
    let types: Vec<String> = blobs
        .iter()
        .map(|blob| match blob.compression {
            Compression::Gzip if is_dockers => DOCKER_LAYER.to_owned(),
            Compression::Gzip => format!("{MEDIA_TYPE_LAYER}+gzip"),
            Compression::Zstd => format!("{MEDIA_TYPE_LAYER}+zstd"),
            Compression::None => MEDIA_TYPE_LAYER.to_owned(),
        })
        .collect();
    let layer = |(blob, media_type)| {
        let (blob, media_type): (&Blob, &String) = (blob, media_type);
        Described { media_type, size: blob.size, digest: blob.digest.as_str() }
    };
    let document = Manifest {
        schema_version: 2,
        media_type: manifest,
        config: Described { media_type: config_type, size: config.1, digest: config.0.as_str() },
        layers: blobs.iter().zip(&types).map(layer).collect(),
    };
    let mut bytes = Vec::new();
    let formatter = PrettyFormatter::with_indent(INDENT);
    document
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .expect("text and numbers can be written into memory");
    (manifest, bytes)
}

/// Whether a manifest has just these blobs.
pub(super) fn has_blobs(document: &[u8], blobs: &[Blob]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(document) else { return false };
    let layers = manifest.layers();
    layers.len() == blobs.len()
        && layers
            .iter()
            .zip(blobs)
            .all(|(layer, blob)| digest_of(layer).is_ok_and(|digest| digest == blob.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(content: &str, compression: Compression) -> Blob {
        Blob { digest: Digest::sha256(content), size: 3, compression }
    }

    #[test]
    fn a_manifest_is_that_of_dockerd_bit_for_bit() {
        let config = Digest::parse(
            "sha256:5a0940b8190d119925a390daf8b541d444e2e1f9b5952861a7b4712f0f946d6e",
        )
        .unwrap();
        let layer = Digest::parse(
            "sha256:b6559d3914b72dd870d3da114b97f380435b41e421280fb402ddb6468598ccbc",
        )
        .unwrap();
        let layer = Blob { digest: layer, size: 3_001_214, compression: Compression::Gzip };
        let (media_type, document) = manifest((&config, 887), std::slice::from_ref(&layer));
        assert_eq!((media_type, document.len()), (DOCKER_MANIFEST, 527));
        let recorded = "sha256:f8f70ca56cbd294a81a2b7f4be128411f6041fd5a655855367cfc469d8b78889";
        assert_eq!(Digest::sha256(&document).as_str(), recorded);
        assert!(has_blobs(&document, std::slice::from_ref(&layer)));
        assert!(!has_blobs(&document, &[layer.clone(), layer]));
    }

    #[test]
    fn docker_has_no_manifest_for_zstd() {
        let config = Digest::sha256("config");
        let blobs = [blob("a", Compression::Gzip), blob("b", Compression::Zstd)];
        let (media_type, document) = manifest((&config, 1), &blobs);
        assert_eq!(media_type, MEDIA_TYPE_MANIFEST);
        assert!(String::from_utf8(document.clone()).unwrap().contains("layer.v1.tar+zstd\""));
        assert!(has_blobs(&document, &blobs));
        assert!(!has_blobs(&document, &[blobs[1].clone(), blobs[0].clone()]));
    }
}
