//! `run`: take the lock, fork the monitor, leave. To the daemon this is a command whose output it reads.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use berth_shim::{
    layout,
    record::{Found, Report, Stage},
    spec::Spec,
};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::prctl,
    unistd::setsid,
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    error::{Result, Step, failure},
    monitor,
    sys::{self, Fork},
};

/// Launches the container of `dir`. Returns in the launcher at once; the monitor reports when the program runs or a step failed.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let path = dir.join(layout::SPEC);
    let Found::Record(spec) = berth_shim::record::read::<Spec>(&path).step_on("read", &path)? else {
        return Err(failure("missing or damaged", &path));
    };
    // Until the process ends, and not a moment less: nothing drops it on the way to exit.
    let _lock = lock(dir)?;
    // CVE-2019-5736: nothing in the container may look into this process; the executable is a sealed copy besides.
    prctl::set_dumpable(false).step("prctl PR_SET_DUMPABLE")?;
    match sys::clone3(0, None).step("fork")? {
        Fork::Parent { .. } => Ok(()),
        Fork::Child => {
            let result = keep(dir, &spec);
            std::process::exit(i32::from(result.is_err()));
        }
    }
}

/// Held by the monitor for as long as it lives, which is how the daemon knows that it does.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(layout::LOCK);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).step_on("open", &path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).step_on("another shim holds", &path)?;
    Ok(file)
}

fn keep(dir: &Path, spec: &Spec) -> Result<()> {
    setsid().step("setsid")?;
    take_name();
    prctl::set_child_subreaper(true).step("prctl PR_SET_CHILD_SUBREAPER")?;
    monitor::run(dir, spec)
}

/// Of the process that stays, for ps(1).
pub(crate) fn take_name() {
    // Fails for no reason that matters.
    let _ = prctl::set_name(c"berth-shim");
}

/// Says what is about to be done that may take long, to who looks.
pub(crate) fn stage(stage: Stage) {
    if let Ok(name) = CString::new(stage.to_string()) {
        // Fails for no reason that matters.
        let _ = prctl::set_name(&name);
    }
}

/// How often `ends_within` looks up from waiting.
const TICK: Duration = Duration::from_secs(5);

/// Whether `child` ends within `limit`; `waiting` hears every few seconds for how long that has been.
pub(crate) fn ends_within(child: &Child, limit: Duration, waiting: impl Fn(Duration)) -> Result<bool> {
    let pid = Pid::from_raw(child.id() as i32).ok_or(Errno::SRCH).step("pidfd_open")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).step("pidfd_open")?;
    let begun = Instant::now();
    loop {
        waiting(begun.elapsed());
        let Some(left) = limit.checked_sub(begun.elapsed()) else { return Ok(false) };
        if is_ready(pidfd.as_fd(), left.min(TICK))? {
            return Ok(true);
        }
    }
}

/// Whether `fd` can be read within `limit`.
pub(crate) fn is_ready(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], milliseconds.max(1)) {
        // Then the caller's next look.
        Err(nix::errno::Errno::EINTR) => Ok(false),
        result => result.step("poll").map(|ready| ready > 0),
    }
}

/// Writes one JSON line to standard output and gives the descriptor up, so that the daemon sees end-of-file.
pub(crate) fn report(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    // A daemon that died in between finds started.json or exit.json instead.
    let _ = std::io::stdout().write_all(&line).and_then(|()| std::io::stdout().flush());
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = sys::replace_stdio(&null, 1);
    }
}
