//! Networks: those that every engine has, those that users make, and what a run needs to be on them.
//!
//! A run's networks are attachments of its sandbox, made by berth-bridge as those of pods are; here
//! is decided which. `endpoints` tells the networks of a record, `plan` makes them what a run gets,
//! `connect` changes them, `ports` chooses the ports of the host, `members` knows who is on which, and
//! `files` writes what /etc/hosts and /etc/resolv.conf have. `names` keeps the names of other containers:
//! in /etc/hosts by `hosts`, and by `told` in what the `name_server` is told.

pub(crate) mod connect;
pub(crate) mod create;
pub(crate) mod endpoints;
pub(crate) mod files;
mod hosts;
pub(crate) mod links;
pub(crate) mod members;
pub(crate) mod name_server;
pub(crate) mod names;
mod object;
pub(crate) mod plan;
mod pools;
pub(crate) mod ports;
mod registry;
pub(crate) mod remove;
mod told;

pub(crate) use self::{
    object::{Driver, Network, Pool},
    registry::Networks,
};
