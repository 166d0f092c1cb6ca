//! The process: `berthd unpack PARENT`, which the daemon starts for each layer.
//!
//! Its working directory is the layer's. The blob comes from descriptor 0, the report goes to 1, and
//! 2 is the network namespace to join; so it has nowhere to complain but the report.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    panic,
    process::ExitCode,
};

use anyhow::{Context, bail};
use berth_base::error::{Error, Kind};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, openat},
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
};

use super::{confine::confine, report::Report};
use crate::unpack::unpack;

/// The subcommand. It is not for people, so `--help` does not show it.
pub(super) const VERB: &str = "unpack";

/// Unpacks one layer, if that is what this program was started for.
pub fn unpack_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let is_asked = arguments.next().is_some_and(|verb| verb == VERB);
    let parent = arguments.next().filter(|_| is_asked)?;
    Some(run(parent.to_str()?.parse().ok()?))
}

/// Unpacks one layer for the process `parent`, and reports to it.
fn run(parent: i32) -> ExitCode {
    panic::set_hook(Box::new(|panic| {
        let _ = say(&Report::new(true, Err(Error::new(Kind::Internal, panic.to_string()))));
    }));
    let report = match prepare(parent) {
        Ok(Prepared { directory, blob, has_landlock }) => {
            Report::new(has_landlock, unpack(blob, directory.as_fd()))
        }
        Err(error) => Report::new(true, Err(error.into())),
    };
    match say(&report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Prepared {
    /// The layer's.
    directory: OwnedFd,
    blob: File,
    has_landlock: bool,
}

fn prepare(parent: i32) -> anyhow::Result<Prepared> {
    end_with(parent)?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = openat(CWD, ".", flags, Mode::empty()).context("open the layer")?;
    // Held for as long as anything is written: see `store::incomplete`.
    flock(&directory, FlockOperation::NonBlockingLockExclusive).context("lock the layer")?;
    let network = io::stderr().as_fd().try_clone_to_owned().context("descriptor 2")?;
    let blob = io::stdin().as_fd().try_clone_to_owned().context("descriptor 0")?;
    let has_landlock = confine(directory.as_fd(), network)?;
    Ok(Prepared { directory, blob: blob.into(), has_landlock })
}

/// Lets the kernel kill this process when the daemon ends.
fn end_with(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    // It may have ended before that, and this process have another parent by now.
    if getppid() != Pid::from_raw(parent) {
        bail!("the daemon has ended");
    }
    Ok(())
}

fn say(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}
