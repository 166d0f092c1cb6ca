//! The Dockerfile language as docker's classic builder has it.
//!
//! From text to a [`Dockerfile`], from an instruction and the variables of its place to an expanded
//! one, from an expanded instruction to the config of the next image. Nothing here opens a file or a
//! connection: the builder hands in what it has read.
//!
//! Errors are in dockerd's words, because people search for them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics fails"))]

mod apply;
mod build_args;
mod changes;
mod config;
mod error;
mod expand;
mod expansion;
#[cfg(test)]
mod facts;
mod flags;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod go;
mod heredoc;
mod ignore;
mod instruction;
mod interpret;
mod lines;
mod node;
mod parse;
mod path;
pub mod path_match;
mod ports;
mod same;
mod shell_pattern;
mod signal;
mod suggest;
mod variables;
mod words;

pub use apply::{Effect, State, created_by};
pub use build_args::BuildArgs;
pub use changes::{trigger, with_changes};
pub use config::{Config, HealthConfig, words};
pub use error::{Error, Result};
pub use expand::expand;
pub use ignore::Ignore;
pub use instruction::{
    Add, Argument, CommandLine, Copy, Dockerfile, Heredoc, Instruction, Line, MetaArgs, Pair, Run,
    Sources, Stage, Step,
};
pub use lines::MAX_FILE;
pub use same::is_same;
pub use variables::Variables;
