//! A container: what the client asked for, what the disk and its shim say about it, and the verbs.
//!
//! Every container is one directory below the root, and its files are the truth (`state::judge` is
//! the whole table). The daemon keeps in memory what it read there, so that a status costs no disk
//! access. These are the states that it publishes:
//!
//! ```text
//!   Created --StartContainer--> Running --the shim's socket ends--> Exited
//!      |                                                              ^
//!      '------------------- the launch failed -----------------------'
//!
//!   Unknown --reconcile--> whichever of these the disk and the shim say
//! ```
//!
//! A container is Unknown after a start of the daemon, until the disk has been read and its shim
//! reached, and again whenever either fails. Exited is final.
//!
//! The files in the order of a container's life: `create` writes its directory, `lifecycle`
//! launches it and reconciles the published state with the disk, `exec` runs more processes in it,
//! `pause` freezes it, `stop` ends it, `remove` takes its directory away.

mod config;
mod create;
mod disk_usage;
pub mod drain;
mod exec;
mod lifecycle;
mod object;
mod oci;
mod pause;
mod remove;
mod seccomp;
mod spec;
mod state;
pub mod stdio;
mod stop;
mod system_paths;
mod update;
mod usage;

pub use self::{
    config::{Config, Device, Meta, Mount, MountSource, Seccomp, Security, Tmpfs},
    create::{create, parse_signal},
    disk_usage::DiskUsage,
    exec::{Execution, Output},
    object::{Container, Loaded},
    remove::remove,
    spec::{ALL_CAPABILITIES, MOUNT_OPTIONS, capability_bit, declared_volumes, parse_user},
    state::{State, Verdict, read as read_state, reason},
    system_paths::{MASKED_PATHS, READONLY_PATHS},
    usage::{Sample, Stats, all as all_stats, refresh as refresh_disk_usage},
};
