//! A container of the engine: its record, its runs, and what becomes of it between them.
//!
//! Its directory, `root/engine/containers/<id>`, has
//!
//! - `container.json`, what was asked for (`record`);
//! - `state.json`, how its last run went, and whether one is under way (`state`);
//! - `upper` and `work`, its writable layer; `container.log`, the output of all its runs.

pub(crate) mod create;
pub(crate) mod life;
pub(crate) mod object;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod state;
pub(crate) mod users;
