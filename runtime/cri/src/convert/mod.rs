//! Converts CRI's messages to berth's types and back: pure functions.

mod container;
mod image;
mod resources;
mod response;
mod sandbox;
mod security;
mod signal;
mod stats;

pub(super) use container::*;
pub(super) use image::*;
pub(super) use resources::*;
pub(super) use response::*;
pub(super) use sandbox::*;
pub(super) use stats::*;
