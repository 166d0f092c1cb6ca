//! Exec, Attach and PortForward by a client of our own, which can break the protocol. kubectl's own
//! code is in `peers` and in critest.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod attach;
mod exec;
mod limits;
mod portforward;
mod session;
