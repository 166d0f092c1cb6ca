//! Health checks: what a container and its image ask for, and the state that probes lead to.
//!
//! ```text
//! (start) --> starting --success--> healthy --retries failures--> unhealthy
//!                |                     ^                              |
//!                | retries failures    +----------- success ----------+
//!                +--------------------------------------------------->+
//! ```
//!
//! Failures within the start period do not count as long as the state is `starting`. Running probes
//! and waiting between them is done elsewhere; the numbers for it are here.

mod config;
mod state;
mod status;

pub use berth_dockerfile::HealthConfig;

pub use self::{
    config::{Probe, check},
    state::{Health, Output, ProbeResult},
    status::Status,
};
