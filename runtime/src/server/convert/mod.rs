//! CRI messages to our types and back.

mod answer;
mod request;
mod signal;

pub(super) use answer::*;
pub(super) use request::*;
