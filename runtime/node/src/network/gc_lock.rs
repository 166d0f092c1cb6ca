//! ADD and GC exclude each other, and ADD has the right of way.
//!
//! GC names the attachments that are to stay, and a plugin frees everything else: an ADD at the
//! same time would lose its address. But a pod does not wait for a GC for long. It makes itself
//! heard, and the GC is ended and tried again later.

use std::time::Duration;

use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long an ADD waits for a GC; most take milliseconds.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct GcLock {
    /// Shared by ADDs, held alone by GC.
    lock: RwLock<()>,
    /// An ADD waits for the GC to end.
    contended: Notify,
}

impl GcLock {
    /// For the time of an ADD.
    pub(super) async fn for_add(&self) -> RwLockReadGuard<'_, ()> {
        if let Ok(guard) = self.lock.try_read() {
            return guard;
        }
        // If the GC ends before it has seen this, the next one gives way without need, and is tried
        // again.
        self.contended.notify_one();
        self.lock.read().await
    }

    /// For the time of a GC; `None` while there are ADDs. It does not queue: tokio's lock is fair,
    /// so all later ADDs would wait behind it for the one that hangs.
    pub(super) fn try_for_gc(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.lock.try_write().ok()
    }

    /// Returns when an ADD has waited for the GC for long enough.
    pub(super) async fn overdue(&self) {
        self.contended.notified().await;
        tokio::time::sleep(GRACE).await;
    }
}
