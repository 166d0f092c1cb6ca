//! `run`: takes the container's lock, forks the monitor, and exits. To the daemon this
//! is a command whose output it reads to its end.

use std::{fs::File, io::stdin, os::fd::AsFd, path::Path};

use berth_shim::{
    layout,
    record::{self, Found},
    spec::Spec,
};
use nix::{
    sys::prctl,
    unistd::{read, setsid},
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::{
    error::{Result, Step, failure},
    process::progress::take_name,
    steps::{At, begin},
    supervise::monitor,
    sys::{self, Fork},
};

/// Launches the container of `dir`. The launcher returns at once; the monitor reports
/// when the program runs or a step has failed.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let path = dir.join(layout::SPEC);
    let Found::Record(spec) = record::read::<Spec>(&path).step_on("read", &path)? else {
        return Err(failure("missing or damaged:", &path));
    };
    // Before the lock, with which a launch that was given up would look like one that is under way.
    await_cgroup()?;
    // A lock of flock(2) belongs to the open file, which the fork below shares. It is held until
    // the last process that has the file ends: nothing drops it earlier.
    begin(At::LaunchLock)?;
    let _lock = lock(dir)?;
    // CVE-2019-5736: a process that a container's root could trace would lend it the host's files.
    // The executable itself is a sealed copy in memory besides.
    prctl::set_dumpable(false).step("prctl PR_SET_DUMPABLE")?;
    begin(At::LaunchFork)?;
    match sys::clone3(0, None).step("fork")? {
        Fork::Parent { .. } => Ok(()),
        Fork::Child => {
            let result = keep(dir, &spec);
            std::process::exit(i32::from(result.is_err()));
        }
    }
}

/// Takes the lock that the monitor holds for as long as it lives, which is how the
/// daemon knows that it does.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(layout::LOCK);
    // Read-only: a descriptor that is open for writing would keep the disk from being remounted
    // read-only for as long as the container lives. flock(2) needs no more.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .step_on("open", &path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).step_on("another shim holds", &path)?;
    Ok(file)
}

/// Waits for the byte with which the daemon says that the container's cgroup is made. All that was
/// done until here was done at the same time.
///
/// # Errors
/// The daemon has failed to make it, or has ended. Nothing of the container exists yet, so nothing
/// is recorded: it stays created, and can be started by the next daemon.
fn await_cgroup() -> Result<()> {
    if read(stdin().as_fd(), &mut [0]).step("read standard input")? == 0 {
        return Err(failure("berthd has given up the launch", ""));
    }
    let null = File::open("/dev/null").step_on("open", "/dev/null")?;
    sys::replace_stdio(&null, 0).step("replace standard input")
}

fn keep(dir: &Path, spec: &Spec) -> Result<()> {
    // Out of the daemon's session and process group, so that a signal to those spares it.
    setsid().step("setsid")?;
    // execve(2) of /proc/self/fd/N, where the sealed copy is, has named the process N.
    take_name();
    // Processes that the container leaves behind come here and not to the host's init, so that
    // `finish` can wait until all of them are gone.
    prctl::set_child_subreaper(true).step("prctl PR_SET_CHILD_SUBREAPER")?;
    monitor::run(dir, spec)
}
