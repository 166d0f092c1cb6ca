//! What `hack/fuzz` feeds: parsers of what strangers write, with what must hold whatever they wrote.

use std::{fs, path::Path};

use bytes::Bytes;

use super::{
    check::{self, Verdict},
    hosts,
    manifest::{self, Manifest},
    reference::Reference,
    store,
    unpack::{self, Source},
};
use crate::error::Result;

struct Whole(Option<Bytes>);

impl Source for Whole {
    fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

/// Unpacks a layer into `directory`, which is empty: nothing appears beside it, and its tar can be made again, unless it says that it
/// cannot.
///
/// # Panics
/// When that does not hold.
pub fn layer(directory: &Path, data: &[u8]) {
    let own = directory.join("layer");
    fs::create_dir_all(own.join(unpack::FILES)).expect("make a directory");
    let unpacked = unpack::unpack(&mut Whole(Some(Bytes::copy_from_slice(data))), &own);
    let mut beside: Vec<_> =
        fs::read_dir(directory).expect("read it").flatten().map(|entry| entry.file_name()).collect();
    beside.extend(fs::read_dir(&own).expect("read it").flatten().map(|entry| entry.file_name()));
    beside.sort_unstable();
    assert!(beside.iter().all(|name| ["fs", "layer", "tar.zst"].iter().any(|known| name == known)), "{beside:?}");
    if let Ok(unpacked) = unpacked {
        let verdict = check::verify(&own, &unpacked.diff_id);
        assert!(!matches!(verdict, Verdict::Damaged(_)), "{verdict:?}");
    }
}

/// A manifest or index, and the config that it could name.
///
/// # Panics
/// Never, which is what is tried.
pub fn documents(data: &[u8]) {
    let _ = manifest::choose_from_index(data);
    let _ = Manifest::parse(manifest::digest(data), "", data.to_vec());
    if let Ok(config) = serde_json::from_slice(data) {
        let _ = store::keys(&config);
    }
}

/// A reference, which means the same when it is parsed again.
///
/// # Panics
/// When it does not.
pub fn reference(text: &str) {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference), "{text:?}");
    }
}

/// `hosts.toml`.
///
/// # Panics
/// Never, which is what is tried.
pub fn hosts(text: &str) {
    let _ = hosts::parse(text, Path::new("/c"), "example.com");
}
