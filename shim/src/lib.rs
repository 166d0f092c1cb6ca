//! The contract between the daemon and the process that keeps a container.
//!
//! `berthd` writes a directory (`layout`, `spec`), launches `berth-shim run --dir DIR`, reads one line (`record::Report`), and
//! from then on speaks packets over a socket (`protocol`). What outlives either side is a file (`record`). No syscalls here:
//! the daemon may import all of this, and an old shim must understand a new daemon, so unknown fields are ignored everywhere.
#![forbid(unsafe_code)]

pub mod layout;
pub mod protocol;
pub mod record;
pub mod spec;
