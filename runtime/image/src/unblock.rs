//! Work that blocks, such as reading, writing and unpacking, for asynchronous code that waits for
//! its end.

use anyhow::anyhow;
use berth_base::{blocking::spawn_blocking, error::Result};

/// Runs `work` on a thread that may block, and waits for it without blocking. Unlike
/// `berth_base::blocking::blocking`, which is for a few system calls on borrowed data.
///
/// # Errors
/// Those of `work`, and `Internal` if it panicked.
pub(super) async fn unblock<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.map_err(|error| anyhow!("blocking work ended early: {error}"))?
}
