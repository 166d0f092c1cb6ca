//! Single mounts: how they are made, labelled, and put into a root.

pub(crate) mod api;
pub(crate) mod bind;
pub(crate) mod inside;
pub(crate) mod proc;
pub(crate) mod relabel;
pub(crate) mod target;
