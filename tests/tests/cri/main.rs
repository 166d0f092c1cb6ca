//! RuntimeService by verb, against the real kernel, and the program that serves it.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod authority;
mod cdi;
mod check;
mod container;
mod daemon;
mod exec;
mod handlers;
mod kubelet;
mod logs;
mod mount_points;
mod mounts;
mod namespaces;
mod resources;
mod sandbox;
mod shim_spec;
mod start;
mod status;
mod stop;
