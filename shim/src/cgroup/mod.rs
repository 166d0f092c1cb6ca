//! The cgroup that the daemon has made for a container: joining it, giving every exec one of its
//! own below it, killing everything in it, removing it.

pub(crate) mod oom;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use berth_shim::{layout, spec::Cgroups};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::{Mode, OFlags};

use crate::{
    error::{Result, Step},
    sys,
};

/// Opens a directory of the v2 tree for CLONE_INTO_CGROUP (clone3(2)).
pub(crate) fn open(directory: &Path) -> Result<File> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .step_on("open cgroup", directory)
}

/// Attaches the daemon's eBPF program that says which devices may be used to the v2 directory, if
/// there is one. To be called before any process of the container is in it.
pub(crate) fn restrict_devices(dir: &Path, directory: &Path) -> Result<()> {
    let path = dir.join(layout::DEVICES);
    let program = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.step_on("read", &path)?,
    };
    let cgroup = File::open(directory).step_on("open cgroup", directory)?;
    sys::attach_device_program(cgroup.as_fd(), &program)
        .step_on("restrict devices of cgroup", directory)
}

/// Moves this process into the v1 controllers, into which clone3(2) cannot fork.
///
/// By `tasks` and not by `cgroup.procs`: a single thread that moves itself needs no lock against
/// every fork of the machine, which takes a grace period of 10 ms (`cgroup_procs_write_start`).
pub(crate) fn join_controllers(cgroups: &Cgroups) -> Result<()> {
    for directory in &cgroups.controllers {
        fs::write(directory.join("tasks"), "0").step_on("join cgroup", directory)?;
    }
    Ok(())
}

/// Makes a directory for an exec below the container's in the v2 tree, so that the exec can be
/// killed with all of its descendants.
pub(crate) fn create_exec(cgroups: &Cgroups, exec: &str) -> Option<PathBuf> {
    let directory = cgroups.unified.as_ref()?.join(format!("exec-{exec}"));
    // An exec without one runs in the container's own cgroup, and only itself can be killed. That
    // is better than a probe that fails.
    fs::create_dir(&directory).ok().map(|()| directory)
}

/// Kills every process below the v2 directory. The kernel does it at once, so that none can fork
/// away (Linux 5.14).
pub(crate) fn kill_tree(directory: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.kill"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"))
}

/// Kills everything in the container's cgroup. On hosts with v1 only, one by one until none is
/// left: processes can fork meanwhile.
pub(crate) fn kill_all(cgroups: &Cgroups) {
    if let Some(directory) = &cgroups.unified
        && kill_tree(directory).is_ok()
    {
        return;
    }
    thaw(cgroups);
    let Some(directory) = cgroups.controllers.first() else { return };
    for _ in 0..64 {
        let Ok(procs) = fs::read_to_string(directory.join("cgroup.procs")) else { return };
        let mut pids = procs.lines().filter_map(|line| line.parse().ok()).peekable();
        if pids.peek().is_none() {
            return;
        }
        for pid in pids {
            // The number was in the container's own cgroup a moment ago. A process leaves that only
            // by its end, and numbers are not given out again so soon.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Lets go on what the freezer of v1 holds, where frozen processes do not even die.
fn thaw(cgroups: &Cgroups) {
    for directory in &cgroups.controllers {
        // Only one of them has this file.
        let _ = OpenOptions::new()
            .write(true)
            .open(directory.join("freezer.state"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"THAWED"));
    }
}

/// Removes the directories. What cannot be removed now is left to the daemon's `remove`.
pub(crate) fn remove(cgroups: &Cgroups) {
    if let Some(directory) = &cgroups.unified {
        let children = fs::read_dir(directory).into_iter().flatten().flatten();
        for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(child.path());
        }
        // A scope belongs to systemd, which removes it once it is empty.
        if !cgroups.is_scope {
            let _ = fs::remove_dir(directory);
        }
    }
    for directory in &cgroups.controllers {
        let _ = fs::remove_dir(directory);
    }
}
