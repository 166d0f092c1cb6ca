//! The monitor, which lives as long as its container: it launches the container, then serves the
//! daemon and copies streams until the container ends.

mod control;
mod launch;
pub(crate) mod monitor;
