//! The second edge: the Docker Engine API over a unix socket, for the docker CLI, compose and every
//! SDK. This is the only crate that names Docker's HTTP routes and JSON.
//!
//! A container of the engine is a record and a writable layer of its own. Each run of it is a
//! sandbox with one container, as Kubernetes' pods are, with the same id: they are made at its start
//! and removed after its end, so that everything that is known about pods holds for them. They live
//! in a `Node` of their own, which the other edge never sees.

mod api;
pub mod archive;
mod build;
pub mod changes;
mod container;
mod engine;
mod events;
pub mod filters;
pub mod health;
mod http;
mod image_name;
mod images;
pub mod names;
mod network;
pub mod ports;
mod progress;
mod publish;
pub mod restart;
mod routes;
mod start;
pub mod status_text;
pub mod streams;
mod sysinfo;
pub mod time;
mod volumes;

pub(crate) use berth_dockerfile::path_match;

pub use self::{engine::Engine, http::server::serve, start::start};
