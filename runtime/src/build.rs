//! Which build this is.

/// `VERSION (COMMIT, DATE)`, or the version alone where neither git nor the environment said more:
/// see `runtime/build.rs`.
pub(crate) const VERSION: &str = env!("BERTH_VERSION");

/// The time of the commit, in seconds since the epoch.
pub(crate) fn time() -> Option<u64> {
    env!("BERTH_TIME").parse().ok()
}
