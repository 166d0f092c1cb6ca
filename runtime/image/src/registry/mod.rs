//! Registries, as far as a pull needs the OCI distribution protocol.
//!
//! `hosts` says where a registry is reached, `client` keeps HTTP clients, `transport` follows
//! redirects without giving secrets away, `token` answers challenges, `server` is one endpoint,
//! `repository` one repository with all of its endpoints, and `download` one blob's bytes.

mod client;
mod download;
mod hosts;
mod repository;
mod response;
mod server;
mod token;
mod transport;

#[cfg(fuzzing)]
pub(super) use self::hosts::parse as parse_hosts;
pub(super) use self::{
    client::Clients,
    download::{CHUNKS, Download, Limits},
    repository::Repository,
};
