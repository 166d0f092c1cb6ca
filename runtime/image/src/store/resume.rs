//! Resume states: what a pull that broke off has already fetched, for the next attempt.
//!
//! A pull writes `images/pulls/<hash of its name>.json` as soon as it knows what it needs, and
//! removes the file at its end. States that are left by a previous daemon, or by a registry that
//! became unavailable, are held for an hour or until the image is pulled again. Leases keep their
//! layers, and the record keeps their partial blobs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use berth_base::{blocking::blocking, id};
use berth_shim::record::{self, Found};
use serde::{Deserialize, Serialize};

use super::{index::Store, layers::Lease, layout::StoreLayout, partial::PartialBlob};
use crate::{digest::Digest, layer_key::LayerKeys, manifest::LayerDescriptor};

/// The kubelet waits at most five minutes between two attempts (ImagePullBackOff). If an hour has
/// passed, nobody wants the image any more.
const KEPT: Duration = Duration::from_secs(3600);

/// `images/pulls/*.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// The reference that is pulled.
    name: String,
    boot_id: String,
    layers: Vec<LayerKeys>,
    /// Hexadecimal digests of the blobs, which are the names of partial blobs.
    blobs: Vec<String>,
}

/// What is held for the next attempt.
#[derive(Debug)]
struct Held {
    record: Record,
    _leases: Vec<Arc<Lease>>,
    /// Distinguishes this from a later state of the same image, so that an old timer does not
    /// discard the new state.
    token: String,
}

#[derive(Debug)]
pub(crate) struct ResumeStates {
    store: Arc<Store>,
    layout: StoreLayout,
    boot_id: String,
    /// By image name. Leases are dropped only after this lock is released, because dropping takes
    /// the lock of the layers.
    held: Mutex<BTreeMap<String, Held>>,
}

impl ResumeStates {
    /// Loads the states that a previous daemon has left; needs a tokio runtime.
    ///
    /// # Errors
    /// A directory cannot be created or read.
    pub(crate) fn open(
        store: &Arc<Store>,
        layout: StoreLayout,
        boot_id: &str,
    ) -> anyhow::Result<Arc<Self>> {
        for directory in [layout.pulls(), layout.partial()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let own = Arc::new(Self {
            store: store.clone(),
            layout,
            boot_id: boot_id.to_owned(),
            held: Mutex::default(),
        });
        for entry in fs::read_dir(own.layout.pulls()).context("read resume states")?.flatten() {
            let path = entry.path();
            match record::read::<Record>(&path) {
                // Checked, because a file under any other name would never be removed by a pull.
                Ok(Found::Record(record))
                    if own.layout.pull(&record.name) == path && !own.has_succeeded(&record) =>
                {
                    let leases = own.lease_present(&record);
                    own.hold(record, leases);
                }
                // Damaged, misplaced, or of no use any more. Without it the pull starts over, which
                // is always correct.
                _ => drop(record::remove(&path)),
            }
        }
        own.sweep();
        Ok(own)
    }

    /// Whether an image has all that the pull was for: the daemon was killed between the two. Held
    /// for longer, the layers would outlive the image.
    fn has_succeeded(&self, record: &Record) -> bool {
        self.store.all().iter().any(|image| {
            let is_in = |keys: &LayerKeys| keys.each().iter().any(|key| image.layers.contains(key));
            record.layers.iter().all(is_in)
        })
    }

    /// Leases those layers of a pull that are complete.
    fn lease_present(&self, record: &Record) -> Vec<Arc<Lease>> {
        record
            .layers
            .iter()
            .flat_map(LayerKeys::each)
            .filter_map(|key| self.store.layers.lease(std::slice::from_ref(key)))
            .map(Arc::new)
            .collect()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what the pull of `name` needs. What an earlier attempt has left stays held until
    /// this one has ended.
    ///
    /// # Errors
    /// The record cannot be written.
    pub(crate) fn begin(
        self: &Arc<Self>,
        name: &str,
        layers: &[LayerDescriptor],
    ) -> anyhow::Result<Attempt> {
        let record = Record {
            name: name.to_owned(),
            boot_id: self.boot_id.clone(),
            layers: layers.iter().map(|layer| layer.keys.clone()).collect(),
            blobs: layers.iter().map(|layer| layer.blob.hex().to_owned()).collect(),
        };
        // Not synced, like everything that it refers to: after a power loss the pull starts over.
        let path = self.layout.pull(name);
        blocking(|| record::write(&path, &record)).context("write the resume state")?;
        Ok(Attempt { states: self.clone(), record })
    }

    /// Holds what a pull has fetched, for `KEPT`.
    fn hold(self: &Arc<Self>, record: Record, leases: Vec<Arc<Lease>>) {
        let name = record.name.clone();
        let token = id::random_hex(8);
        let held = Held { record, _leases: leases, token: token.clone() };
        let replaced = self.held().insert(name.clone(), held);
        drop(replaced);
        // One timer for each pull that broke off within the last hour; there are never many.
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let is_same = own.held().get(&name).is_some_and(|held| held.token == token);
            if is_same {
                tracing::info!(
                    image = name,
                    "nobody pulled it again within an hour: its layers and partial blobs are \
                    discarded"
                );
                own.forget(&name);
                own.store.collect();
            }
        });
    }

    fn forget(&self, name: &str) {
        // If this fails, the next daemon finds the state again and holds it for an hour.
        let _ = fs::remove_file(self.layout.pull(name));
        let held = self.held().remove(name);
        drop(held);
        self.sweep();
    }

    /// Removes the partial blobs that no held state of this boot refers to. Those that are in use
    /// are locked and stay.
    fn sweep(&self) {
        // Bytes of another boot were never synced and may be anything.
        let wanted: BTreeSet<String> = {
            let held = self.held();
            let of_this_boot = held.values().filter(|held| held.record.boot_id == self.boot_id);
            of_this_boot.flat_map(|held| &held.record.blobs).cloned().collect()
        };
        for entry in fs::read_dir(self.layout.partial()).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| !wanted.contains(name)) {
                PartialBlob::remove_unused(&entry.path());
            }
        }
    }

    /// The partial blob for a blob of `size` bytes; see `PartialBlob::open`.
    pub(crate) fn partial_blob(&self, blob: &Digest, size: u64) -> Option<PartialBlob> {
        PartialBlob::open(self.layout.partial().join(blob.hex()), size)
    }
}

/// A pull in progress. Its state stays on disk until `end` is called, whatever happens to the
/// daemon.
#[derive(Debug)]
pub(crate) struct Attempt {
    states: Arc<ResumeStates>,
    record: Record,
}

impl Attempt {
    /// Ends the attempt and forgets its state: it has succeeded, or can never succeed.
    pub(crate) fn end(self) {
        self.states.forget(&self.record.name);
    }

    /// Ends the attempt, but keeps its state and these layers for another one.
    pub(crate) fn keep(self, layers: Vec<Arc<Lease>>) {
        self.states.hold(self.record, layers);
    }
}
