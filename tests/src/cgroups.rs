//! The cgroups of a test's machine: where they are in every hierarchy, and their end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::capability::has_systemd_scopes;

/// What the names of machines' directories begin with. It is in the command line of every shim, by
/// which those of a machine are found.
pub(crate) const PREFIX: &str = "berth-test-";

/// Names in a directory, sorted; none if there is no such directory.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// The cgroup parent of the machine that has this directory.
pub(crate) fn cgroup_parent(directory: &Path) -> String {
    let name = directory.file_name().expect("has a name").to_string_lossy().into_owned();
    if has_systemd_scopes() {
        // systemd makes `a-b.slice` a child of `a.slice` (systemd.slice(5)), so the name has no
        // dash.
        return format!("{}.slice", name.replace('-', ""));
    }
    name
}

/// Removes what machines that could not do it themselves have left of cgroups. `directory` is where
/// theirs are.
pub fn sweep(directory: &Path) {
    let left = names(directory).into_iter().filter(|name| name.starts_with(PREFIX));
    left.for_each(|name| end_cgroups(&cgroup_parent(&directory.join(name))));
}

/// Kills what is in the cgroups below `parent` and removes them, in every hierarchy; waits five
/// seconds at most.
pub(crate) fn end_cgroups(parent: &str) {
    let parents: Vec<PathBuf> = cgroup_roots().map(|root| root.join(parent)).collect();
    for path in &parents {
        // Only cgroup v2 has this file, since Linux 5.14.
        let _ = fs::write(path.join("cgroup.kill"), "1");
    }
    if has_systemd_scopes() {
        // systemd keeps a unit whose cgroup somebody else has removed.
        let _ = Command::new("systemctl").args(["stop", parent]).status();
    }
    // Killed processes leave their cgroup only when the kernel has ended them.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !parents.iter().all(|path| remove_cgroup(path)) && Instant::now() < deadline {
        cgroups(parent).iter().for_each(|path| kill_all(path));
        #[expect(clippy::disallowed_methods, reason = "cgroup v1 tells nobody that it is empty")]
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills what is in one cgroup, as cgroup v1 can do only one by one.
fn kill_all(cgroup: &Path) {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another PID namespace, and would mean this process' own group.
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn cgroup_roots() -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    names(root)
        .into_iter()
        .map(move |name| root.join(name))
        .chain([root.to_owned()])
        .filter(|path| path.join("cgroup.procs").exists())
}

/// Removes a cgroup and everything below it; returns whether it is gone.
fn remove_cgroup(path: &Path) -> bool {
    let mut directories = Vec::new();
    descend(path, &mut directories);
    // From the leaves up: rmdir(2) refuses a cgroup with children.
    directories.iter().rev().for_each(|directory| drop(fs::remove_dir(directory)));
    !path.exists()
}

/// The cgroups below `parent`, in every hierarchy.
pub(crate) fn cgroups(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in cgroup_roots() {
        for name in names(&root.join(parent)) {
            let path = root.join(parent).join(name);
            if path.is_dir() {
                descend(&path, &mut found);
            }
        }
    }
    found
}

/// Adds `path` and every directory below it to `found`, parents first.
fn descend(path: &Path, found: &mut Vec<PathBuf>) {
    found.push(path.to_owned());
    for name in names(path) {
        let child = path.join(name);
        if child.is_dir() {
            descend(&child, found);
        }
    }
}
