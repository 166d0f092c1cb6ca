//! CRI messages to our types and back.

mod answer;
mod request;
mod signal;
mod stats;

pub(super) use answer::*;
pub(super) use request::*;
pub(super) use stats::*;
