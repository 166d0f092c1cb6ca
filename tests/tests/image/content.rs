//! Images of incompressible files, and checks of what a pull has left of them on disk.

use std::{collections::BTreeSet, fs};

use berth_tests::{Cri, Daemon, FakeRegistry, Image, Layer, Machine, digest, gzip};
use serde_json::{Value, json};

pub(crate) const MIB: usize = 1 << 20;

pub(crate) async fn start() -> (Machine, Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// Bytes that cannot be compressed, the same ones for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// An image, and its files by layer.
pub(crate) struct Made {
    pub(crate) layers: Vec<(String, Vec<u8>)>,
    pub(crate) diff_ids: Vec<String>,
    pub(crate) image: Image,
}

/// An image with a layer for each size, which has one file of that many bytes of noise.
pub(crate) fn made(sizes: &[usize]) -> Made {
    let layers: Vec<(String, Vec<u8>)> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| (format!("file{n}"), noise(n as u64 + 1, *size)))
        .collect();
    let tars: Vec<Vec<u8>> =
        layers.iter().map(|(name, content)| Layer::new().file(name, content).bytes()).collect();
    let packed: Vec<(Vec<u8>, Vec<u8>)> = tars.iter().map(|tar| (tar.clone(), gzip(tar))).collect();
    let diff_ids = tars.iter().map(|tar| digest(tar)["sha256:".len()..].to_owned()).collect();
    Made { layers, diff_ids, image: Image::new(&packed, &json!({ "Cmd": ["x"] })) }
}

impl Made {
    /// Asserts that every file is there and has its content.
    pub(crate) fn assert_whole(&self, machine: &Machine) {
        for (diff_id, (name, content)) in self.diff_ids.iter().zip(&self.layers) {
            let path = machine.path("root/layers").join(diff_id).join("fs").join(name);
            assert!(fs::read(&path).unwrap() == *content, "{} is not what it was", path.display());
        }
    }
}

pub(crate) fn names(machine: &Machine, directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(machine.path("root").join(directory)).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

pub(crate) fn read_json(machine: &Machine, path: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(machine.path("root").join(path)).ok()?).ok()
}

/// Asserts that every layer, blob and partial blob on disk is named by an image or by a pull in
/// progress.
pub(crate) fn assert_all_named(machine: &Machine) {
    let strings = |value: &Value| {
        value
            .as_array()
            .into_iter()
            .flatten()
            .map(|v| v.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let hex = |value: &Value| value.as_str().unwrap()["sha256:".len()..].to_owned();
    let (mut layers, mut blobs, mut parts) =
        (BTreeSet::from(["empty".to_owned()]), BTreeSet::new(), BTreeSet::new());
    let index = read_json(machine, "images/index.json").unwrap_or_default();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let manifest = hex(&descriptor["digest"]);
        let config =
            hex(&read_json(machine, &format!("images/blobs/sha256/{manifest}")).unwrap()["config"]
                ["digest"]);
        let diff_ids =
            read_json(machine, &format!("images/blobs/sha256/{config}")).unwrap()["rootfs"]["diff_ids"].clone();
        layers.extend(strings(&diff_ids).iter().map(|id| id["sha256:".len()..].to_owned()));
        blobs.extend([manifest, config]);
    }
    for name in names(machine, "images/pulls") {
        let pull = read_json(machine, &format!("images/pulls/{name}")).unwrap();
        pull["layers"].as_array().unwrap().iter().for_each(|keys| layers.extend(strings(keys)));
        parts.extend(strings(&pull["blobs"]));
    }
    for (directory, named) in
        [("layers", layers), ("images/blobs/sha256", blobs), ("images/partial", parts)]
    {
        let unnamed: Vec<String> = names(machine, directory).difference(&named).cloned().collect();
        assert!(unnamed.is_empty(), "{directory}: {unnamed:?}");
    }
}

/// The ranges of all requests for a blob, in order; `None` for a request of the whole blob.
pub(crate) fn ranges_of(registry: &FakeRegistry, blob: &str) -> Vec<Option<String>> {
    let asked = registry.requests().into_iter().filter(|request| request.path.ends_with(blob));
    asked.map(|request| request.header("range").map(str::to_owned)).collect()
}
