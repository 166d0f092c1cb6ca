//! The life of a container: its runs, and what happens between them.
//!
//! ```text
//! start --> begin --> supervise --(its end)--> end --+--> at rest, or removed
//!             ^                                      |
//!             +--------- the policy's delay ---------+
//! ```
//!
//! Whatever begins or ends a run, or removes the container, holds `Container::life` meanwhile.

mod attach;
mod begin;
mod complaints;
mod end;
mod health;
mod pause;
mod pause_during;
mod remove;
mod resume;
mod start;
mod stop;
mod supervise;

use std::sync::Arc;

use berth_node::container as node;

pub(crate) use self::{
    attach::attach,
    begin::undo as undo_run,
    end::{Seen, end},
    pause::{pause, unpause},
    pause_during::{end_pause, pause_during},
    remove::{With, remove, remove_if_asked},
    resume::resume,
    start::start,
    stop::{kill, stop},
    supervise::supervise,
};
use super::object::Container;
use crate::engine::Engine;

/// The node's container of a run.
pub(crate) fn running(engine: &Engine, container: &Container) -> Option<Arc<node::Container>> {
    let found = engine.node.containers.find(&container.id).ok();
    found.filter(|run| run.meta.id.as_str() == container.id)
}
