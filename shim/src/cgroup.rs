//! The cgroup that the daemon made: join it, give every exec a part of its own, kill all of it, ask for OOM kills, remove it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::fd::{AsFd, BorrowedFd},
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

/// Opens the v2 directory for CLONE_INTO_CGROUP.
pub(crate) fn open(directory: &Path) -> Result<File> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .step_on("open cgroup", directory)
}

/// Attaches the daemon's device program to the v2 directory, where there is one: before anything of the container is in it.
pub(crate) fn restrict_devices(dir: &Path, directory: &Path) -> Result<()> {
    let path = dir.join(layout::DEVICES);
    let program = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.step_on("read", &path)?,
    };
    let cgroup = File::open(directory).step_on("open cgroup", directory)?;
    sys::attach_device_program(cgroup.as_fd(), &program).step_on("restrict devices of cgroup", directory)
}

/// Moves this process into the v1 controllers, which clone3 cannot do. By `tasks`: a single thread that moves itself is spared the
/// lock against every fork of the machine, whose grace period takes 10 ms (cgroup_procs_write_start in the kernel).
pub(crate) fn join_controllers(cgroups: &Cgroups) -> Result<()> {
    for directory in &cgroups.controllers {
        fs::write(directory.join("tasks"), "0").step_on("join cgroup", directory)?;
    }
    Ok(())
}

/// A directory below the container's in the v2 tree, so that one exec can be killed with all of its descendants.
pub(crate) fn create_exec(cgroups: &Cgroups, exec: &str) -> Option<PathBuf> {
    let directory = cgroups.unified.as_ref()?.join(format!("exec-{exec}"));
    // Without it an exec still runs, in the container's own cgroup; only its descendants are then out of reach.
    fs::create_dir(&directory).ok().map(|()| directory)
}

/// SIGKILL to every process of the v2 directory, by the kernel and at once (Linux 5.14).
pub(crate) fn kill_tree(directory: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(directory.join("cgroup.kill"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"))
}

/// Kills what is left of a container. On hosts with v1 only, by the list of processes until it is empty.
pub(crate) fn kill_all(cgroups: &Cgroups) {
    if let Some(directory) = &cgroups.unified
        && kill_tree(directory).is_ok()
    {
        return;
    }
    let Some(directory) = cgroups.controllers.first() else { return };
    for _ in 0..64 {
        let Ok(procs) = fs::read_to_string(directory.join("cgroup.procs")) else { return };
        let mut pids = procs.lines().filter_map(|line| line.parse().ok()).peekable();
        if pids.peek().is_none() {
            return;
        }
        for pid in pids {
            // Read from the container's own cgroup a moment ago; one that has left since is already dead.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether the kernel killed a process of the container for want of memory.
pub(crate) struct OomWatch {
    /// `memory.events` of the container's v2 cgroup. Where that is a scope, systemd may remove it before its last event is read:
    /// then what has been added to the parent's, which counts what is below it, was the container's.
    own: Option<Events>,
    parent: Option<Events>,
    /// `memory.oom_control` of v1, which stays for as long as the shim does.
    controls: Vec<PathBuf>,
    seen: bool,
}

struct Events {
    file: File,
    count: u64,
}

impl Events {
    fn open(directory: &Path) -> Option<Self> {
        let mut events = Self { file: File::open(directory.join("memory.events")).ok()?, count: 0 };
        events.read().ok()?;
        Some(events)
    }

    /// Reads the file, which asks to be told of its next change too.
    fn read(&mut self) -> io::Result<u64> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        self.count = oom_kills(&text);
        Ok(self.count)
    }
}

impl OomWatch {
    pub(crate) fn open(cgroups: &Cgroups) -> Self {
        let own = cgroups.unified.as_deref().and_then(Events::open);
        let parent = cgroups.unified.as_deref().filter(|_| cgroups.is_scope).and_then(Path::parent);
        let controls = cgroups.controllers.iter().map(|directory| directory.join("memory.oom_control")).collect();
        Self { own, parent: parent.and_then(Events::open), controls, seen: false }
    }

    /// To be polled for POLLPRI.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.own.iter().chain(&self.parent).map(|events| events.file.as_fd())
    }

    /// Reads what has happened so far.
    pub(crate) fn look(&mut self) -> bool {
        if let Some(own) = &mut self.own {
            match own.read() {
                Ok(count) => self.seen |= count > 0,
                Err(_) => {
                    let parent = self.parent.as_mut().map(|parent| (parent.count, parent.read()));
                    self.seen |= matches!(parent, Some((before, Ok(now))) if now > before);
                    self.own = None;
                }
            }
        }
        if let Some(parent) = &mut self.parent
            && parent.read().is_err()
        {
            self.parent = None;
        }
        let mut controls = self.controls.iter().filter_map(|path| fs::read_to_string(path).ok());
        self.seen |= controls.any(|text| oom_kills(&text) > 0);
        self.seen
    }
}

fn oom_kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Removes the directories. What cannot be removed now, the daemon's `remove` will.
pub(crate) fn remove(cgroups: &Cgroups) {
    if let Some(directory) = &cgroups.unified {
        let children = fs::read_dir(directory).into_iter().flatten().flatten();
        for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(child.path());
        }
        if !cgroups.is_scope {
            let _ = fs::remove_dir(directory);
        }
    }
    for directory in &cgroups.controllers {
        let _ = fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::oom_kills;

    #[test]
    fn oom_kills_are_read_from_both_versions() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 4\noom 2\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }
}
