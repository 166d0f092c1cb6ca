//! A container of the engine: its record, its runs, and what becomes of it between them.
//!
//! Its directory, `root/engine/containers/<id>`, has
//!
//! - `container.json`, what was asked for (`record`);
//! - `state.json`, how its last run went, and whether one is under way (`state`);
//! - `boot`, a link to the id of the boot with which it goes, if it has `--rm`;
//! - `upper` and `work`, its writable layer;
//! - `container.log`, the output of all its runs, with the files that rotation has put aside.
//!
//! A power loss takes back nothing that a client was told: the records are on the disk before that,
//! and so is the removal of a container. What it has written itself, the kernel writes when it likes.

mod base_layer;
pub(crate) mod check;
pub(crate) mod create;
mod defaults;
pub(crate) mod files;
pub(crate) mod life;
pub(crate) mod links;
pub(crate) mod logging;
pub(crate) mod merge;
pub(crate) mod mounts;
pub(crate) mod not_started;
pub(crate) mod object;
pub(crate) mod platform;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod size;
pub(crate) mod state;
pub(crate) mod users;
