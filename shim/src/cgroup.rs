//! The cgroup that the daemon made: join it, give every exec a part of its own, kill all of it, ask for OOM kills, remove it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use berth_shim::spec::Cgroups;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::{Mode, OFlags};

use crate::error::{Result, Step};

/// Opens the v2 directory for CLONE_INTO_CGROUP.
pub(crate) fn open(directory: &Path) -> Result<File> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .step_on("open cgroup", directory)
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

/// Whether the kernel killed a process here for want of memory: `memory.events` of v2, `memory.oom_control` of v1.
pub(crate) fn was_oom(cgroups: &Cgroups) -> bool {
    let unified = cgroups.unified.iter().map(|directory| directory.join("memory.events"));
    let memory = cgroups.controllers.iter().map(|directory| directory.join("memory.oom_control"));
    unified.chain(memory).filter_map(|path| fs::read_to_string(path).ok()).any(|text| oom_kills(&text) > 0)
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
        let _ = fs::remove_dir(directory);
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
