//! How a process that has prepared a program outside of a PID namespace gets inside.
//!
//! A process cannot change its own PID namespace, only that of its future children. So it forks a
//! sibling (CLONE_PARENT) that goes on in its place, and ends: the parent keeps a child, and only
//! its number is another one. `sys::Successor` is how the parent learns the number.

use berth_shim::spec::Process;
use nix::sched::CloneFlags;

use crate::{
    error::{Result, Step},
    seccomp::Pass,
    sys::{self, Successor},
};

/// The last step but one before a program: enters the PID namespace as the `successor`, if there is
/// one, and leads a session of its own.
///
/// If others are in the namespace, those who may trace can look at a process from the moment that
/// it is there, and take it over. So it gets there only now, when it has the root of its program
/// and nothing that the program does not have.
pub(crate) fn enter_pid_namespace(
    process: &Process,
    successor: Option<&Successor>,
    pass: Pass,
) -> Result<()> {
    if let Some(successor) = successor {
        fork_successor(successor, CloneFlags::empty(), pass)?;
    }
    // Only now: a session is left behind by a fork, and a terminal is its leader's.
    lead_session(process.tty, pass)
}

/// Leads a session, with standard input as its controlling terminal if `terminal`: Ctrl-C reaches
/// the program by that.
pub(crate) fn lead_session(terminal: bool, pass: Pass) -> Result<()> {
    sys::setsid(pass.0).step("setsid")?;
    if terminal { sys::take_controlling_terminal(pass.0).step("TIOCSCTTY") } else { Ok(()) }
}

/// Goes on as the successor, in new namespaces of `flags`.
pub(crate) fn fork_successor(successor: &Successor, flags: CloneFlags, pass: Pass) -> Result<()> {
    if !successor.fork(flags.bits(), pass.0).step("clone3 in the container")? {
        // This one has been replaced, and its end is expected by the parent.
        std::process::exit(0);
    }
    Ok(())
}
