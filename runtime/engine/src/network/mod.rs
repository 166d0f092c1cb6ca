//! Networks: those that every engine has, and what a run needs to be on one.
//!
//! A run's network is an attachment of its sandbox, made by berth-bridge as those of pods are; here
//! is decided which one. `plan` makes that of a record, `ports` chooses the ports of the host, and
//! `files` writes what /etc/hosts and /etc/resolv.conf have.

pub(crate) mod files;
pub(crate) mod links;
pub(crate) mod plan;
pub(crate) mod pools;
pub(crate) mod ports;
pub(crate) mod predefined;

pub(crate) use self::predefined::{Driver, Network, Networks};
