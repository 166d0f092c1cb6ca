//! Durability: when images are on disk, and how berth knows.
//!
//! PullImage returns before anything is synced. An fsync(2) for every file of a layer would make
//! pulls many times slower, and the kubelet waits for the image and not for its durability.
//! Instead, berth makes sure that after a power loss it can tell what may be damaged:
//!
//! - the record of a layer contains the boot id until a background sync has finished; a record with
//!   another boot's id means that the layer was never synced (`layers`);
//! - manifests and configs are verified by their digests whenever they are read;
//! - `index.json.synced` is the index as of the last sync, for when the newer one is damaged.
//!
//! So a power loss may cost another pull, but never results in a damaged image (containerd#12302 is
//! about `exec format error` and empty files after one).
//!
//! This depends on the order in `make_durable`: first note what there is, then syncfs(2), and only
//! then record that it is on disk. Once `index.json.synced` is the index, every image in it
//! survives.

use std::{
    fs,
    sync::{Arc, PoisonError},
};

use anyhow::Context;
use berth_base::blocking::spawn_blocking;
use berth_shim::record;

use super::index::Store;

impl Store {
    /// Runs `make_durable` in the background; needs a tokio runtime.
    pub(crate) fn make_durable_later(self: &Arc<Self>) {
        let own = self.clone();
        spawn_blocking(move || {
            if let Err(error) = own.make_durable() {
                // The next pull or the next start tries again. Until then a power loss would cost
                // these images.
                tracing::warn!("make images durable: {error:#}");
                own.state().unsynced = true;
            }
        });
    }

    /// Syncs what was added since boot, then records that it is on disk. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn make_durable(&self) -> anyhow::Result<()> {
        // One sync at a time. If several pulls end at once, most of them find nothing left to do.
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = {
            let mut state = self.state();
            let pending = self.layers.unsynced();
            if pending.is_empty() && !state.unsynced {
                return Ok(());
            }
            // Reset before the sync, so that a change during the sync is synced afterwards.
            state.unsynced = false;
            pending
        };
        // The index may be replaced while the sync runs, and the new one would not be synced. So it
        // is this copy that becomes the synced index.
        let index = self.layout.index();
        let copy = self.layout.syncing_index();
        let has_index = index.exists();
        if has_index {
            record::remove(&copy).context("remove an earlier copy of the image index")?;
            fs::copy(&index, &copy).context("keep the image index")?;
        }
        self.sync()?;
        self.layers.mark_synced(pending)?;
        // The records of the layers, which are all that has changed. Without this a power loss
        // within the next half a minute could still cost the images.
        self.sync()?;
        if has_index {
            record::rename(&copy, &self.layout.synced_index()).context("keep the image index")?;
        }
        Ok(())
    }

    /// Writes everything to disk by one call for the whole filesystem, which lets the kernel do so
    /// in the best order, while an fsync for each file would wait for each of them.
    fn sync(&self) -> anyhow::Result<()> {
        let root = fs::File::open(&self.layout.layers).context("open layers")?;
        rustix::fs::syncfs(&root).context("syncfs")
    }
}
