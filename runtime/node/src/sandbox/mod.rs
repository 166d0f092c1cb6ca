//! A pod sandbox: namespaces that are pinned to files, an attachment to a network, and the files
//! that its containers share. It is not a process.
//!
//! `run` makes one, in an order in which a crash at any line leaves only what `remove` finds.
//! `stop` and `remove` are its undo, and need only the disk.

mod config;
mod connect;
mod files;
mod object;
mod pause;
mod remove;
mod run;
mod sysctl;

pub use self::{
    config::{Config, Dns, Meta, NamespaceMode, NamespaceModes, Origin, Pins, UserMapping},
    object::{Sandbox, Sizes, State, attached, read_state},
    remove::{remove, stop},
    run::run,
};
