//! The second edge: the Docker Engine API over a unix socket, for the docker CLI, compose and every
//! SDK. This is the only crate that names Docker's HTTP routes and JSON.

pub mod archive;
pub mod changes;
pub mod filters;
pub mod health;
pub mod names;
pub mod ports;
pub mod restart;
pub mod status_text;
pub mod streams;
pub mod time;
