//! The blobs that are known of a layer: which digest it has when it is compressed, and in which
//! repositories it is.
//!
//! They come from the manifests of images that were pulled or pushed, and from what earlier pushes
//! noted beside the layer. Compressing a layer again is what takes a push its time.

use std::{collections::HashMap, path::Path};

use berth_shim::record;
use oci_spec::image::{Descriptor, ImageManifest};
use serde::{Deserialize, Serialize};

use crate::{
    compression::Compression,
    digest::Digest,
    layer_dir::UPLOADS,
    manifest::digest_of,
    store::{Image, Store},
};

/// How many repositories are noted of a layer.
const MAX_NOTED: usize = 50;

/// A layer as a registry has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub compression: Compression,
}

/// A blob, and a repository in which it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownBlob {
    /// With the host: `quay.io/a/b`.
    pub repository: String,
    pub blob: Blob,
}

/// The blobs of each of these layers, by diff-id. What is noted comes first. Blocks.
pub(super) fn known_blobs(store: &Store, image: &Image) -> HashMap<Digest, Vec<KnownBlob>> {
    let mut known: HashMap<Digest, Vec<KnownBlob>> = HashMap::new();
    for (diff_id, key) in image.layers_by_diff_id().unwrap_or_default() {
        let noted = noted(&store.layers.directory(&key));
        known.entry(diff_id).or_insert(noted);
    }
    for other in store.all() {
        let shares = other.layers.iter().any(|key| image.layers.contains(key));
        if !shares {
            continue;
        }
        let diff_ids: Vec<Digest> = other
            .layers_by_diff_id()
            .unwrap_or_default()
            .into_iter()
            .map(|(diff_id, _)| diff_id)
            .collect();
        for (repository, manifest) in store.repositories(&other.id) {
            let blobs = blobs_of(store, &manifest).into_iter().flatten();
            for (diff_id, blob) in diff_ids.iter().zip(blobs) {
                let Some(known) = known.get_mut(diff_id) else { continue };
                let blob = KnownBlob { repository: repository.clone(), blob };
                if !known.contains(&blob) {
                    known.push(blob);
                }
            }
        }
    }
    known
}

/// The blobs of a manifest of the store, the lowest layer first.
pub(super) fn blobs_of(store: &Store, manifest: &Descriptor) -> Option<Vec<Blob>> {
    let document = store.blob(&digest_of(manifest).ok()?).ok()?;
    let manifest: ImageManifest = serde_json::from_slice(&document).ok()?;
    manifest.layers().iter().map(blob).collect()
}

fn blob(layer: &Descriptor) -> Option<Blob> {
    let media_type = layer.media_type().to_string();
    let compression = match media_type.rsplit(['.', '+']).next() {
        Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        _ => Compression::None,
    };
    Some(Blob { digest: digest_of(layer).ok()?, size: layer.size(), compression })
}

/// What earlier pushes have noted. What cannot be read counts as nothing: the layer is compressed
/// again.
fn noted(directory: &Path) -> Vec<KnownBlob> {
    let found = record::read::<Vec<KnownBlob>>(&directory.join(UPLOADS));
    found.ok().and_then(record::Found::record).unwrap_or_default()
}

/// Notes that a repository has a blob of the layer in `directory`. Blocks.
pub(super) fn note(directory: &Path, blob: KnownBlob) {
    let mut known = noted(directory);
    if known.first() == Some(&blob) {
        return;
    }
    known.retain(|other| other.repository != blob.repository);
    known.insert(0, blob);
    known.truncate(MAX_NOTED);
    write(directory, &known);
}

/// Forgets that a repository has this blob. Blocks.
pub(super) fn forget(directory: &Path, repository: &str, blob: &Digest) {
    let mut known = noted(directory);
    let before = known.len();
    known.retain(|known| known.repository != repository || known.blob.digest != *blob);
    if known.len() != before {
        write(directory, &known);
    }
}

fn write(directory: &Path, known: &Vec<KnownBlob>) {
    if let Err(error) = record::write(&directory.join(UPLOADS), known) {
        tracing::debug!(directory = %directory.display(), %error, "an upload is not noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(repository: &str, content: &str) -> KnownBlob {
        let blob =
            Blob { digest: Digest::sha256(content), size: 1, compression: Compression::Gzip };
        KnownBlob { repository: repository.to_owned(), blob }
    }

    #[test]
    fn uploads_are_noted_once_a_repository_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(noted(path), []);
        for number in 0..2 * MAX_NOTED {
            note(path, known(&format!("r/{number}"), "old"));
        }
        note(path, known("r/99", "new"));
        let found = noted(path);
        assert_eq!((found.len(), &found[0]), (MAX_NOTED, &known("r/99", "new")));
        forget(path, "r/99", &Digest::sha256("old"));
        forget(path, "r/98", &Digest::sha256("old"));
        assert_eq!(noted(path).len(), MAX_NOTED - 1);
        std::fs::write(path.join(UPLOADS), "nonsense").unwrap();
        assert_eq!(noted(path), []);
    }
}
