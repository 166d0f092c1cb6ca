//! Images as a file that other tools load: an OCI image layout and a docker-archive in one tar, layers uncompressed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufWriter, Read, Write},
    sync::Arc,
};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::{
    reference::Digest,
    store::{Image, Store, layer_keys},
    unpack::Rebuilt,
};
use crate::error::{Error, Kind, Result};

/// An image, and by what tags it is to be known.
#[derive(Debug)]
pub(super) struct Exported {
    pub image: Arc<Image>,
    pub tags: Vec<String>,
}

/// Writes `images`, whose layers the caller holds, into `out`. Blocks.
///
/// # Errors
/// `FailedPrecondition` for a layer whose tar cannot be made again; what was written then is no archive.
pub(super) fn write(store: &Store, images: &[Exported], out: File) -> Result<()> {
    let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, out));
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    let mut layers = BTreeMap::new();
    let mut written = BTreeSet::new();
    for Exported { image, tags } in images {
        let config = store.blob(&image.id)?;
        let mut descriptors = Vec::new();
        for (diff_id, key) in layer_keys(image)? {
            if !layers.contains_key(&diff_id) {
                layers.insert(diff_id.clone(), add_layer(&mut archive, store, &diff_id, &key)?);
            }
            descriptors.push(describe("application/vnd.oci.image.layer.v1.tar", &diff_id, layers[&diff_id]));
        }
        let paths: Vec<String> =
            descriptors.iter().map(|layer| blob(layer["digest"].as_str().unwrap_or_default())).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": descriptors,
            "config": describe("application/vnd.oci.image.config.v1+json", &image.id, config.len() as u64),
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(Sha256::digest(&manifest));
        for (digest, bytes) in [(&image.id, &config), (&digest, &manifest)] {
            if written.insert(digest.clone()) {
                add(&mut archive, &blob(digest.as_str()), bytes)?;
            }
        }
        let descriptor = describe(media_type, &digest, manifest.len() as u64);
        index.extend(tags.iter().map(|tag| named(descriptor.clone(), tag)));
        if tags.is_empty() {
            index.push(descriptor);
        }
        docker.push(json!({ "Config": blob(image.id.as_str()), "RepoTags": tags, "Layers": paths }));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": index });
    add(&mut archive, "index.json", index.to_string().as_bytes())?;
    add(&mut archive, "manifest.json", Value::from(docker).to_string().as_bytes())?;
    let finished = archive.into_inner().and_then(|mut out| out.flush());
    finished.context("write the archive")?;
    Ok(())
}

fn describe(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size })
}

/// containerd and nerdctl read the one annotation, podman and skopeo the other.
fn named(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({ "io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag });
    descriptor
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn header(length: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(length);
    header
}

fn add(archive: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<()> {
    archive.append_data(&mut header(bytes.len() as u64), path, bytes).context("write the archive")?;
    Ok(())
}

/// The length of what was added.
fn add_layer(archive: &mut Builder<impl Write>, store: &Store, diff_id: &Digest, key: &str) -> Result<u64> {
    let wrong = |what: String| Error::new(Kind::FailedPrecondition, format!("layer {diff_id} {what}"));
    let open = || Rebuilt::open(&store.layers.directory(key));
    let unknown = || wrong("is of an artifact, or has one name twice: its tar cannot be made again".to_owned());
    let length = open()?.ok_or_else(unknown)?.length().map_err(|error| wrong(format!("is damaged: {error}")))?;
    let mut tar = Hashed { inner: open()?.ok_or_else(unknown)?, hash: Sha256::new(), failed: false };
    let added = archive.append_data(&mut header(length), blob(diff_id.as_str()), &mut tar);
    let whole = !tar.failed && Digest::of(tar.hash.finalize()) == *diff_id;
    match added {
        Err(error) if !tar.failed => Err(error).context("write the archive")?,
        Ok(()) if whole => Ok(length),
        _ => Err(wrong("is damaged: `berthd images check --repair` pulls it again".to_owned())),
    }
}

/// Tells what cannot be read from what cannot be written.
struct Hashed {
    inner: Rebuilt,
    hash: Sha256,
    failed: bool,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer).inspect_err(|_| self.failed = true)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}
