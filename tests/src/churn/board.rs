//! What was killed, and when: written before each kill by who kills, and read by who has got an
//! answer that a kill may explain.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use tokio::sync::watch;

#[derive(Debug, Default)]
pub(super) struct Board {
    /// Odd from just before the daemon is killed until its successor serves.
    daemon: watch::Sender<u64>,
    /// Shims, pins and plugins that were killed.
    launches: AtomicU64,
    /// Path components of the killed shims' directories, among them the ids of containers and pods.
    shims: Mutex<BTreeSet<String>>,
    /// Something has gone wrong, and nobody need go on.
    failed: AtomicBool,
}

/// A moment, to be compared with a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    daemon: u64,
    launches: u64,
}

impl Moment {
    /// Whether the daemon was being killed at some time from `earlier` on.
    pub(super) fn daemon_died_since(self, earlier: Self) -> bool {
        self.daemon != earlier.daemon || self.daemon % 2 == 1
    }

    pub(super) fn launch_killed_since(self, earlier: Self) -> bool {
        self.launches != earlier.launches
    }

    /// The daemon that serves, as a number; `None` while none does.
    pub(super) fn generation(self) -> Option<u64> {
        self.daemon.is_multiple_of(2).then_some(self.daemon)
    }
}

impl Board {
    pub(super) fn now(&self) -> Moment {
        Moment { daemon: *self.daemon.borrow(), launches: self.launches.load(SeqCst) }
    }

    pub(super) fn daemon_dies(&self) {
        self.daemon.send_modify(|count| *count += 1);
    }

    pub(super) fn daemon_serves(&self) {
        self.daemon.send_modify(|count| *count += 1);
    }

    /// Waits until a daemon serves, and returns its number.
    pub(super) async fn served(&self) -> u64 {
        let mut daemon = self.daemon.subscribe();
        let served = daemon.wait_for(|count| count.is_multiple_of(2)).await;
        // An error means that the sender is gone, and that is `self`.
        *served.expect("the board holds the sender")
    }

    /// A pin or a plugin is about to be killed.
    pub(super) fn launch_dies(&self) {
        self.launches.fetch_add(1, SeqCst);
    }

    /// A shim with this command line is about to be killed.
    pub(super) fn shim_dies(&self, command: &str) {
        let names = command.split(['/', ' ']).map(str::to_owned);
        self.shims.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        self.launch_dies();
    }

    /// Whether a shim of this container, or of the pause process of this pod, was killed.
    pub(super) fn shim_died(&self, id: &str) -> bool {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, SeqCst);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_seen_by_whoever_was_at_work_and_by_nobody_else() {
        let board = Board::default();
        let before = board.now();
        board.daemon_dies();
        let during = board.now();
        assert!(during.daemon_died_since(before) && during.daemon_died_since(during));
        board.daemon_serves();
        let after = board.now();
        assert!(after.daemon_died_since(during) && !after.daemon_died_since(after));
        assert!(!after.launch_killed_since(before));
        board.shim_dies("berth-shim run --dir /tmp/root/sandboxes/abc/pause ");
        assert!(board.now().launch_killed_since(after));
        assert!(board.shim_died("abc") && !board.shim_died("abd"));
    }
}
