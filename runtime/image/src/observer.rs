//! Reports the progress of pulls to the daemon, for its metrics.

use std::time::Duration;

/// Callbacks into the daemon. Through them this module depends on none of its metrics but those of
/// steps.
#[derive(Clone, Copy, Debug)]
pub struct Observer {
    /// A pull ended: how long it took, and whether it succeeded.
    pub pull_ended: fn(Duration, bool),
    /// A layer of a pulled image was on disk already.
    pub layer_reused: fn(),
    /// A layer of a pulled image has to be fetched.
    pub layer_pulled: fn(),
    /// This many bytes were received from a registry.
    pub bytes_received: fn(u64),
}
