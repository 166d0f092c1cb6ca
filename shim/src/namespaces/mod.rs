//! Namespaces: those of a pod, which its containers join, and those of a container.

pub(crate) mod idmap;
pub(crate) mod join;
pub(crate) mod user;
