//! The steps from a forked process to a program of the container, in the order of their files:
//! `init` for the first process, `exec` for every other one, `pause` for a pod that shares its PID
//! namespace; then `credentials`, `reaper` for those
//! who want one, and at last `program`.

pub(crate) mod credentials;
pub(crate) mod exec;
pub(crate) mod init;
pub(crate) mod pause;
mod program;
mod reaper;
mod terminal;
