//! The execs that were asked for.

/// By their ids.
#[derive(Debug, Default)]
pub(crate) struct Execs;
