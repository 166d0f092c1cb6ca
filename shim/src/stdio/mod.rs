//! Standard streams, on both sides of the fork, and the log that output goes to.

pub(crate) mod child;
pub(crate) mod log;
pub(crate) mod streams;
