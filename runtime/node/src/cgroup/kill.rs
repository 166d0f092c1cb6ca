//! The end of a cgroup: its processes are killed, and its directories removed.

use std::{
    fs,
    io::{self, Read, Seek},
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// Kills all processes of a v2 cgroup and waits for their end. Success when there is no cgroup.
///
/// # Errors
/// A process does not die.
pub(super) fn kill(directory: &Path) -> io::Result<()> {
    match kill_and_wait(directory) {
        Err(error) if is_of_removed(&error) => Ok(()),
        result => result,
    }
}

/// Whether a file could not be read or written because its cgroup does not exist. ENODEV: it was
/// removed after the file had been opened.
pub(crate) fn is_of_removed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn kill_and_wait(directory: &Path) -> io::Result<()> {
    // Kills what is forked meanwhile too (cgroup-v2.rst, "cgroup.kill").
    fs::write(directory.join("cgroup.kill"), "1")?;
    await_event(directory, "populated 0", DYING)
}

/// Waits until cgroup.events has this line.
///
/// # Errors
/// `TimedOut`, and those of reading it.
pub(super) fn await_event(directory: &Path, line: &str, limit: Duration) -> io::Result<()> {
    let mut events = fs::File::open(directory.join("cgroup.events"))?;
    let deadline = Instant::now() + limit;
    loop {
        // kernfs makes the text anew when it is read from the beginning.
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|found| found == line) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("its processes do not come to {line:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        // A change of the file is a priority event (cgroup-v2.rst, "populated").
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
    }
}

/// Removes an empty cgroup and those below it, deepest first, as rmdir(2) wants it: the files of a
/// cgroup cannot be removed and go with their directory. Success when there is none.
pub(super) fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
