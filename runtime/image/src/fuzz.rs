//! What `hack/fuzz` feeds: parsers of what strangers write, with what must hold whatever they
//! wrote.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
};

use crate::{
    check::{self, Verdict},
    digest::Digest,
    layer_dir::{FILES, TAR_SPLIT},
    layer_key::layer_keys,
    manifest::{Manifest, choose_from_index},
    reference::Reference,
    registry::parse_hosts,
    unpack,
    unpacker::finish,
};

/// Unpacks a layer into `directory`, which is empty. Nothing may appear beside it, and its tar can
/// be reassembled, unless it says that it cannot.
///
/// # Panics
/// When that does not hold.
pub fn layer(directory: &Path, data: &[u8]) {
    let own = directory.join("layer");
    fs::create_dir_all(own.join(FILES)).expect("make a directory");
    let unpacked = File::open(&own).map_err(anyhow::Error::from).and_then(|directory| {
        let contents = unpack::unpack(data, directory.as_fd())?;
        finish(&own, &contents.files)?;
        Ok(contents)
    });
    for (path, known) in [(directory, &["layer"][..]), (&own, &[FILES, TAR_SPLIT][..])] {
        for entry in fs::read_dir(path).expect("read it").flatten() {
            let name = entry.file_name();
            assert!(known.iter().any(|known| name == *known), "{}", name.display());
        }
    }
    if let Ok(unpacked) = unpacked {
        let verdict = check::verify_layer(&own, &unpacked.diff_id);
        assert!(!matches!(verdict, Verdict::Damaged(_)), "{verdict:?}");
    }
}

/// Parses a manifest or index, and the config that it could name.
///
/// # Panics
/// Never, which is what is tried.
pub fn documents(data: &[u8]) {
    let _ = choose_from_index(data);
    let _ = Manifest::parse(Digest::sha256(data), "", data.to_vec());
    if let Ok(config) = serde_json::from_slice(data) {
        let _ = layer_keys(&config);
    }
}

/// Parses a reference, which must mean the same when it is parsed again.
///
/// # Panics
/// When it does not.
pub fn reference(text: &str) {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference), "{text:?}");
    }
}

/// Parses a `hosts.toml`.
///
/// # Panics
/// Never, which is what is tried.
pub fn hosts(text: &str) {
    let _ = parse_hosts(text, Path::new("/c"), "example.com");
}
