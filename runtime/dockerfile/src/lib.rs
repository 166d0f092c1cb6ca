//! The Dockerfile language as docker's classic builder has it.
//!
//! From text to a [`Dockerfile`], from an instruction and the variables of its place to an expanded
//! one, from an expanded instruction to the config of the next image. Nothing here opens a file or a
//! connection: the builder hands in what it has read.
//!
//! Errors are in dockerd's words, because people search for them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that panics fails"))]

mod config;
mod error;
mod expand;
mod flags;
mod go;
mod heredoc;
mod instruction;
mod interpret;
mod lines;
mod node;
mod parse;
mod shell_pattern;
mod suggest;
mod words;

pub use config::{Config, HealthConfig, words};
pub use error::{Error, Result};
pub use expand::{Variables, expand};
pub use instruction::{
    Add, Argument, CommandLine, Copy, Dockerfile, Heredoc, Instruction, Line, MetaArgs, Pair, Run,
    Sources, Stage, Step,
};
pub use lines::MAX_FILE;
