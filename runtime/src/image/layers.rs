//! Layers on disk: a directory each, which stays for as long as somebody holds it.
//!
//! A layer is complete when its `layer.json` is, and it appears by one rename. A record made since boot carries the boot id until a
//! background syncfs(2) has passed; one of another boot is of a layer that power loss may have damaged, and is thrown away.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_shim::record::{self, Found};
use serde::{Deserialize, Serialize};

use super::unpack::FILES;
use crate::{id, layout::Layout, trash};

const RECORD: &str = "layer.json";
/// The layer of images that have none: overlayfs wants at least one.
pub(crate) const EMPTY: &str = "empty";

/// `layer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    bytes: u64,
    inodes: u64,
    /// Not yet known to be on disk since this boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

#[derive(Debug)]
struct Layer {
    record: Record,
    /// Leases of images, containers and running pulls.
    uses: usize,
    /// Not what it was: nothing may start with it, and whoever pulls it replaces it.
    damaged: bool,
}

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug)]
pub(crate) struct Layers {
    layout: Layout,
    boot_id: String,
    all: Mutex<HashMap<String, Layer>>,
}

/// Keeps layers from being deleted for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    layers: Arc<Layers>,
    keys: Vec<String>,
}

impl Lease {
    /// The directories of its layers' files.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.keys.iter().map(|key| self.layers.files(key)).collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut all = self.layers.all();
        for key in &self.keys {
            let Some(layer) = all.get_mut(key) else { continue };
            layer.uses = layer.uses.saturating_sub(1);
            if layer.uses == 0 {
                self.layers.discard(&mut all, key);
            }
        }
    }
}

impl Layers {
    /// Reads what is on disk. What is half-made or of an unclean reboot is thrown away; what nobody needs goes with `collect`, once
    /// images and containers have taken their leases.
    pub(super) fn open(layout: Layout, boot_id: &str) -> anyhow::Result<Arc<Self>> {
        let empty = layout.layers().join(EMPTY).join(FILES);
        fs::create_dir_all(&empty).with_context(|| format!("make {}", empty.display()))?;
        let mut all = HashMap::new();
        for entry in fs::read_dir(layout.layers()).context("read layers")?.flatten() {
            let key = entry.file_name().to_string_lossy().into_owned();
            match record::read::<Record>(&entry.path().join(RECORD)) {
                Ok(Found::Record(record)) if record.boot_id.as_ref().is_none_or(|made| made == boot_id) => {
                    all.insert(key, Layer { record, uses: 0, damaged: false });
                }
                _ if key == EMPTY => {}
                _ => throw_away(&layout, &entry.path()),
            }
        }
        Ok(Arc::new(Self { layout, boot_id: boot_id.to_owned(), all: Mutex::new(all) }))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Layer>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discard(&self, all: &mut HashMap<String, Layer>, key: &str) {
        all.remove(key);
        throw_away(&self.layout, &self.directory(key));
    }

    /// Throws away the layers that nobody holds.
    pub(super) fn collect(&self) {
        let mut all = self.all();
        let unused: Vec<String> = all.iter().filter(|(_, layer)| layer.uses == 0).map(|(key, _)| key.clone()).collect();
        unused.iter().for_each(|key| self.discard(&mut all, key));
    }

    /// Takes the layers, if all of them are there and nothing is known to be wrong with them.
    pub(crate) fn lease(self: &Arc<Self>, keys: &[String]) -> Option<Lease> {
        let mut all = self.all();
        let known = |key: &String| key == EMPTY || all.get(key).is_some_and(|layer| !layer.damaged);
        if !keys.iter().all(known) {
            return None;
        }
        for key in keys {
            if let Some(layer) = all.get_mut(key) {
                layer.uses += 1;
            }
        }
        Some(Lease { layers: self.clone(), keys: keys.to_vec() })
    }

    /// Where large files may be for a while.
    pub(super) fn scratch(&self) -> PathBuf {
        self.layout.layers()
    }

    /// A new directory to unpack a layer into, with `FILES` in it.
    pub(super) fn prepare(&self) -> anyhow::Result<PathBuf> {
        let path = self.layout.layers().join(format!("{}.tmp", id::random_hex(16)));
        fs::create_dir_all(path.join(FILES)).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Deletes what `prepare` made, before anyone is told: after a full disk there is room again.
    pub(super) async fn abandon(prepared: &Path) {
        if let Err(error) = tokio::fs::remove_dir_all(prepared).await {
            tracing::warn!(path = %prepared.display(), %error, "delete half a layer");
        }
    }

    /// Makes a prepared directory the layer `key`, and holds it.
    pub(super) fn commit(self: &Arc<Self>, prepared: &Path, key: &str, usage: Usage) -> anyhow::Result<Lease> {
        let record = Record { bytes: usage.bytes, inodes: usage.inodes, boot_id: Some(self.boot_id.clone()) };
        // Nobody sees it before the directory has its name.
        let bytes = serde_json::to_vec(&record).context("the layer's record")?;
        fs::write(prepared.join(RECORD), bytes).context("write the layer's record")?;
        let mut all = self.all();
        let path = self.directory(key);
        match all.get_mut(key) {
            Some(layer) if layer.damaged => {
                throw_away(&self.layout, &path);
                fs::rename(prepared, &path).context("replace layer")?;
                (layer.record, layer.damaged) = (record, false);
                layer.uses += 1;
            }
            Some(layer) => {
                throw_away(&self.layout, prepared);
                layer.uses += 1;
            }
            None => {
                fs::rename(prepared, &path).context("commit layer")?;
                all.insert(key.to_owned(), Layer { record, uses: 1, damaged: false });
            }
        }
        Ok(Lease { layers: self.clone(), keys: vec![key.to_owned()] })
    }

    /// Where a layer is, with its record and what its tar had besides.
    pub(super) fn directory(&self, key: &str) -> PathBuf {
        self.layout.layers().join(key)
    }

    pub(super) fn files(&self, key: &str) -> PathBuf {
        self.directory(key).join(FILES)
    }

    /// Bytes on disk of a layer that is there.
    pub(super) fn bytes(&self, key: &str) -> Option<u64> {
        self.all().get(key).map(|layer| layer.record.bytes)
    }

    /// Marks a layer as damaged, unless somebody beside so many images holds it: false then.
    pub(super) fn distrust(&self, key: &str, images: usize) -> bool {
        match self.all().get_mut(key) {
            Some(layer) if layer.uses > images => false,
            Some(layer) => {
                layer.damaged = true;
                true
            }
            None => true,
        }
    }

    /// What was made since boot and is not known to be on disk.
    pub(super) fn unsynced(&self) -> Vec<(String, Record)> {
        let all = self.all();
        let made_now = all.iter().filter(|(_, layer)| layer.record.boot_id.is_some());
        made_now.map(|(key, layer)| (key.clone(), layer.record.clone())).collect()
    }

    /// Notes that a syncfs(2) has passed since `unsynced`.
    pub(super) fn are_synced(&self, layers: Vec<(String, Record)>) -> anyhow::Result<()> {
        for (key, mut record) in layers {
            record.boot_id = None;
            let path = self.directory(&key).join(RECORD);
            match record::write(&path, &record) {
                // Removed in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.with_context(|| format!("write {}", path.display()))?,
            }
            if let Some(layer) = self.all().get_mut(&key) {
                layer.record = record;
            }
        }
        Ok(())
    }

    /// Of all layers; counted when they were unpacked.
    pub(super) fn usage(&self) -> Usage {
        let sum = |total: Usage, layer: &Layer| Usage {
            bytes: total.bytes + layer.record.bytes,
            inodes: total.inodes + layer.record.inodes,
        };
        self.all().values().fold(Usage::default(), sum)
    }
}

fn throw_away(layout: &Layout, path: &Path) {
    if let Err(error) = trash::discard(layout, path) {
        tracing::warn!(path = %path.display(), %error, "move into the trash");
    }
}
