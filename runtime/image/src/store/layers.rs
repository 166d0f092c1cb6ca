//! Layers on disk. Each is a directory, which stays for as long as an image, a container or a pull
//! needs it.
//!
//! A layer is unpacked under a temporary name and appears by one rename, when its record
//! `layer.json` has been written. The record contains the boot id until a background syncfs(2) has
//! finished (`durability`). A record with another boot's id means that a power loss may have
//! damaged the layer.
//!
//! Dropping an object in memory never deletes anything. Only `collect` does: its caller says what
//! images need, and it spares everything that is leased. So a daemon deletes nothing when it ends,
//! however it ends. The layers of a pull are leased from their commit until the image is in the
//! index, so that a collection in between cannot delete them (moby#53321).

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_base::id;
use berth_shim::record::{self, Found};
use serde::{Deserialize, Serialize};

use super::{disk::Disk, incomplete, layout::StoreLayout};
use crate::{
    layer_dir::{FILES, RECORD},
    layer_key::LayerKey,
    usage::Usage,
};

/// Extension of a directory into which a layer is being unpacked.
const UNPACKING: &str = "tmp";

/// `layer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    bytes: u64,
    inodes: u64,
    /// The boot in which the layer was made. Removed once the layer is known to be on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
}

impl Record {
    fn usage(&self) -> Usage {
        Usage { bytes: self.bytes, inodes: self.inodes }
    }
}

#[derive(Debug)]
struct LayerState {
    record: Record,
    /// Number of leases: of containers, of running pulls, and of checks and exports that read it.
    leases: usize,
    /// The layer is damaged or may be. No new container may use it, and the next pull replaces it.
    damaged: bool,
    /// A container may be running on it, so that its files must stay where they are.
    mounted: bool,
    /// Distinguishes this from a later layer with the same key.
    generation: u64,
}

impl LayerState {
    fn whole(record: Record) -> Self {
        Self { record, leases: 0, damaged: false, mounted: false, generation: 0 }
    }

    /// A layer that is missing, or about which nothing is known.
    fn damaged() -> Self {
        let record = Record { bytes: 0, inodes: 0, boot_id: None };
        Self { damaged: true, ..Self::whole(record) }
    }

    /// Takes the record of a commit: what is on disk from here on is another layer.
    fn replace(&mut self, record: Record, generation: u64) {
        self.record = record;
        self.damaged = false;
        self.generation = generation;
    }
}

/// A layer that is not known to be on disk yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    key: LayerKey,
    generation: u64,
}

/// Who holds the layers of an existing container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Runs, or may run without a pull in between.
    Living,
    /// Has ended, or went with an earlier boot. Its mounts are gone, so that a damaged layer can be
    /// replaced although it is leased.
    Dead,
}

#[derive(Debug, Default)]
struct State {
    layers: HashMap<LayerKey, LayerState>,
    /// Number of leases on all layers.
    leases_of_all: usize,
    /// The generation of the last commit.
    generation: u64,
}

#[derive(Debug)]
pub(crate) struct Layers {
    layout: StoreLayout,
    disk: Disk,
    boot_id: String,
    /// Held during the renames of `commit` and `collect`, so that it always agrees with what is on
    /// disk. Nothing that takes long is done with this lock held.
    state: Mutex<State>,
}

/// A layer that was discarded.
#[derive(Debug)]
pub(crate) struct Collected {
    pub key: LayerKey,
    /// What it occupied on disk.
    pub bytes: u64,
}

/// Keeps layers from being collected while it exists. Dropping it does not delete them; only
/// `collect` does.
#[derive(Debug)]
pub struct Lease {
    layers: Arc<Layers>,
    leased: Leased,
}

#[derive(Debug)]
enum Leased {
    Keys(Vec<LayerKey>),
    /// Every layer, because it is not known which ones are needed.
    All,
}

impl Lease {
    /// The directories with the files of the leased layers.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        match &self.leased {
            Leased::Keys(keys) => {
                keys.iter().map(|key| self.layers.directory(key).join(FILES)).collect()
            }
            Leased::All => Vec::new(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.layers.state();
        match &self.leased {
            Leased::All => state.leases_of_all = state.leases_of_all.saturating_sub(1),
            Leased::Keys(keys) => {
                for key in keys {
                    if let Some(layer) = state.layers.get_mut(key) {
                        layer.leases = layer.leases.saturating_sub(1);
                    }
                }
            }
        }
    }
}

impl Layers {
    /// Loads the layers and discards incomplete ones. Layers that are damaged, or were not synced
    /// before the last reboot, stay until `collect`, because a container may be running on them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn open(
        layout: StoreLayout,
        disk: Disk,
        boot_id: &str,
    ) -> anyhow::Result<Arc<Self>> {
        let empty = layout.layer(&LayerKey::empty()).join(FILES);
        fs::create_dir_all(&empty).with_context(|| format!("make {}", empty.display()))?;
        let mut layers = HashMap::new();
        for entry in fs::read_dir(&layout.layers).context("read layers")?.flatten() {
            let key = LayerKey::of_directory(entry.file_name().to_string_lossy().into_owned());
            if key.is_empty_layer() {
                continue;
            }
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == UNPACKING) {
                incomplete::discard(&disk, &path);
                continue;
            }
            let layer = read_layer(&path, boot_id);
            layers.insert(key, layer);
        }
        let state = Mutex::new(State { layers, ..State::default() });
        Ok(Arc::new(Self { layout, disk, boot_id: boot_id.to_owned(), state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discards the layers that are neither needed nor leased, and returns them.
    pub(super) fn collect(&self, is_needed: impl Fn(&LayerKey) -> bool) -> Vec<Collected> {
        let mut collected = Vec::new();
        let mut state = self.state();
        // A container whose own layers are unknown may be using any of them.
        if state.leases_of_all > 0 {
            return collected;
        }
        state.layers.retain(|key, layer| {
            let stays = layer.leases > 0 || is_needed(key);
            if !stays {
                self.disk.discard(&self.directory(key));
                collected.push(Collected { key: key.clone(), bytes: layer.record.bytes });
            }
            stays
        });
        collected
    }

    /// Leases layers, provided that all of them exist and none is known to be damaged.
    pub(crate) fn lease(self: &Arc<Self>, keys: &[LayerKey]) -> Option<Lease> {
        let mut state = self.state();
        let is_whole = |key: &LayerKey| {
            key.is_empty_layer() || state.layers.get(key).is_some_and(|layer| !layer.damaged)
        };
        if !keys.iter().all(is_whole) {
            return None;
        }
        Some(self.lease_from(&mut state, keys))
    }

    /// Leases the layers of an existing container, whatever their state. Also returns those that
    /// are missing or damaged.
    pub(crate) fn hold(
        self: &Arc<Self>,
        keys: &[LayerKey],
        holder: Holder,
    ) -> (Lease, Vec<LayerKey>) {
        let mut state = self.state();
        let mut damaged = Vec::new();
        for key in keys.iter().filter(|key| !key.is_empty_layer()) {
            // A missing layer gets an entry too, so that it counts as leased when a pull brings it
            // back.
            let layer = state.layers.entry(key.clone()).or_insert_with(LayerState::damaged);
            layer.mounted |= holder == Holder::Living;
            if layer.damaged {
                damaged.push(key.clone());
            }
        }
        (self.lease_from(&mut state, keys), damaged)
    }

    /// Leases every layer, for a container whose own layers are unknown.
    pub(crate) fn hold_all(self: &Arc<Self>) -> Lease {
        self.state().leases_of_all += 1;
        Lease { layers: self.clone(), leased: Leased::All }
    }

    fn lease_from(self: &Arc<Self>, state: &mut State, keys: &[LayerKey]) -> Lease {
        for key in keys {
            if let Some(layer) = state.layers.get_mut(key) {
                layer.leases += 1;
            }
        }
        Lease { layers: self.clone(), leased: Leased::Keys(keys.to_vec()) }
    }

    /// A directory for large temporary files, on the same filesystem as the layers.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.layout.layers.clone()
    }

    /// Creates a directory to unpack a layer into, with `FILES` in it.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub(crate) fn prepare(&self) -> anyhow::Result<PathBuf> {
        let path = self.layout.layers.join(format!("{}.{UNPACKING}", id::random_hex(16)));
        fs::create_dir_all(path.join(FILES)).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Deletes a directory that `prepare` created. Does so at once and not in the background: the
    /// caller is about to report a failure, and if the disk was full, the space should be free
    /// again by then.
    pub(crate) async fn abandon(prepared: &Path) {
        if let Err(error) = tokio::fs::remove_dir_all(prepared).await {
            // The next start discards it, like every incomplete layer.
            tracing::warn!(path = %prepared.display(), %error, "delete an incomplete layer");
        }
    }

    /// Turns a prepared directory into the layer `key`, and leases that. Blocks.
    ///
    /// # Errors
    /// The record cannot be written or the directory not be renamed. The caller then has to abandon
    /// it.
    pub(crate) fn commit(
        self: &Arc<Self>,
        prepared: &Path,
        key: &LayerKey,
        usage: Usage,
    ) -> anyhow::Result<Lease> {
        let record = Record {
            bytes: usage.bytes,
            inodes: usage.inodes,
            boot_id: Some(self.boot_id.clone()),
        };
        // Written in place: nobody can see the record before the directory is renamed.
        let bytes = serde_json::to_vec(&record).context("the layer's record")?;
        fs::write(prepared.join(RECORD), bytes).context("write the layer's record")?;
        let mut state = self.state();
        state.generation += 1;
        let State { layers, leases_of_all, generation } = &mut *state;
        let path = self.directory(key);
        match layers.get_mut(key) {
            // A container runs on the damaged layer. Lower directories must not change under an
            // overlayfs mount, and the files are still those that were unpacked, because no power
            // was lost since: what got lost is the record. So only the record is renewed.
            Some(layer)
                if layer.damaged
                    && (layer.mounted || *leases_of_all > 0)
                    && path.join(FILES).exists() =>
            {
                record::write(&path.join(RECORD), &record).context("renew the layer's record")?;
                self.disk.discard(prepared);
                layer.replace(record, *generation);
            }
            // Whoever has a lease on it does not run, and gets the new files.
            Some(layer) if layer.damaged => {
                self.disk.discard(&path);
                fs::rename(prepared, &path).context("replace layer")?;
                layer.replace(record, *generation);
            }
            // Another pull was faster.
            Some(_) => self.disk.discard(prepared),
            None => {
                fs::rename(prepared, &path).context("commit layer")?;
                let mut layer = LayerState::whole(record);
                layer.generation = *generation;
                layers.insert(key.clone(), layer);
            }
        }
        // With the lock still held, or a collection could find the layer without a lease.
        Ok(self.lease_from(&mut state, std::slice::from_ref(key)))
    }

    /// The directory of a layer, with its record and its tar-split.
    pub(crate) fn directory(&self, key: &LayerKey) -> PathBuf {
        self.layout.layer(key)
    }

    /// Bytes on disk of a layer. `None` if it is missing or known to be damaged.
    pub(crate) fn bytes(&self, key: &LayerKey) -> Option<u64> {
        self.state().layers.get(key).filter(|layer| !layer.damaged).map(|layer| layer.record.bytes)
    }

    /// Marks a layer as damaged, so that the next pull replaces it. Returns false if the layer is
    /// leased, because it cannot be replaced while something runs on it.
    pub(crate) fn mark_damaged(&self, key: &LayerKey) -> bool {
        match self.state().layers.get_mut(key) {
            Some(layer) if layer.leases > 0 => false,
            Some(layer) => {
                layer.damaged = true;
                true
            }
            None => true,
        }
    }

    /// The layers that are not known to be on disk yet.
    pub(super) fn unsynced(&self) -> Vec<Unsynced> {
        let state = self.state();
        let unsynced = state.layers.iter().filter(|(_, layer)| layer.record.boot_id.is_some());
        let noted = |(key, layer): (&LayerKey, &LayerState)| Unsynced {
            key: key.clone(),
            generation: layer.generation,
        };
        unsynced.map(noted).collect()
    }

    /// Records that these layers are on disk. A syncfs(2) must have finished since `unsynced`, so that
    /// a record without a boot id never reaches the disk before its layer. The records themselves are
    /// the caller's to sync: a power loss may revert them until then, which costs a pull.
    ///
    /// # Errors
    /// A record cannot be written.
    pub(super) fn mark_synced(&self, layers: Vec<Unsynced>) -> anyhow::Result<()> {
        for Unsynced { key, generation } in layers {
            // Held while the record is written. Otherwise the layer could be removed and pulled
            // again in between, and the new one, which is not synced, would get the record.
            let mut state = self.state();
            let layer = state.layers.get_mut(&key);
            let Some(layer) = layer.filter(|layer| layer.generation == generation) else {
                continue;
            };
            let record = Record { boot_id: None, ..layer.record.clone() };
            let path = self.directory(&key).join(RECORD);
            match record::write(&path, &record) {
                // Somebody else has deleted the layer's directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                written => written.with_context(|| format!("write {}", path.display()))?,
            }
            layer.record = record;
        }
        Ok(())
    }

    /// Disk usage of all layers, as counted when they were unpacked.
    pub(crate) fn usage(&self) -> Usage {
        self.state().layers.values().map(|layer| layer.record.usage()).sum()
    }
}

/// Reads the state of the layer in the directory `path`.
fn read_layer(path: &Path, boot_id: &str) -> LayerState {
    match record::read::<Record>(&path.join(RECORD)) {
        Ok(Found::Record(record)) if record.boot_id.as_ref().is_none_or(|made| made == boot_id) => {
            LayerState::whole(record)
        }
        // Normal if the machine rebooted right after a pull, so there is no warning.
        Ok(Found::Record(_)) => LayerState::damaged(),
        Ok(Found::Absent | Found::Damaged) | Err(_) => {
            tracing::warn!(
                layer = %path.file_name().unwrap_or_default().display(),
                "its {RECORD} is missing or damaged: images with it are to be pulled again"
            );
            LayerState::damaged()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<Record>("layer.json");
    }
}
