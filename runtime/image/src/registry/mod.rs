//! Registries, as far as pulls and pushes need the OCI distribution protocol.
//!
//! `hosts` says where a registry is reached, `client` keeps HTTP clients, `transport` follows
//! redirects without giving secrets away, `token` answers challenges, `server` is one endpoint,
//! `repository` one repository with all of its endpoints, and `download` one blob's bytes; `target`
//! is a repository that is pushed to, `search` asks an index, and `reach` whether anybody answers.

mod client;
mod download;
mod hosts;
mod reach;
mod repository;
mod response;
mod search;
mod server;
mod target;
mod token;
mod transport;

#[cfg(fuzzing)]
pub(super) use self::hosts::parse as parse_hosts;
pub use self::reach::{Reached, reach_registries};
pub(super) use self::{
    client::Clients,
    download::{CHUNKS, Download, Limits},
    repository::Repository,
    search::search,
    target::{PartialUpload, Target},
};
