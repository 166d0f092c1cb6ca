//! The streams of processes, as clients of the engine get and give them.

pub(crate) mod session;
