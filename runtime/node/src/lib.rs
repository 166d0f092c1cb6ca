//! Pods and containers, and every verb on them. No edge is named here: CRI's messages and HTTP are
//! for the crates above.

mod cdi;
pub mod cgroup;
pub mod container;
pub mod events;
mod handlers;
pub mod host;
mod mount_points;
pub mod network;
mod node;
pub mod recover;
pub mod sandbox;
pub mod security;
pub mod shim;
pub mod stats;

pub use self::node::Node;
