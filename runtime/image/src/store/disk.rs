//! What the store needs from the daemon's management of the disk.

use std::{fmt, io, path::Path, sync::Arc};

/// A write that may be repeated.
type Write<'a> = dyn Fn() -> io::Result<()> + 'a;

type Discard = dyn Fn(&Path) -> io::Result<()> + Send + Sync;
type WithRoom = dyn Fn(&Write<'_>) -> io::Result<()> + Send + Sync;

/// Callbacks into the daemon, so that this module depends neither on its trash nor on its reserve
/// for full disks.
#[derive(Clone)]
pub struct Disk {
    /// Moves a directory away at once and deletes its files later. Succeeds if it does not exist.
    pub discard: Arc<Discard>,
    /// Runs a write. While the disk is full, frees some of the reserve and runs it again.
    pub with_room: Arc<WithRoom>,
}

impl Disk {
    /// Discards a layer that nobody needs. If that fails the layer stays, and the next start tries
    /// again.
    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = (self.discard)(path) {
            tracing::warn!(path = %path.display(), %error, "move a layer into the trash");
        }
    }

    pub(super) fn with_room(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        (self.with_room)(&write)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}
