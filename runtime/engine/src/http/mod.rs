//! HTTP/1.1 as docker's clients speak it: connections, versions in paths, errors, bodies, upgrades.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod observe;
pub(crate) mod server;
pub(crate) mod transfer;
pub(crate) mod upgrade;
pub(crate) mod version;
pub(crate) mod websocket;
