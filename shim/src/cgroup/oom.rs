//! Whether the kernel has killed a process of the container because memory was short.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use berth_shim::spec::Cgroups;

/// Counts the OOM kills of a container's cgroup.
pub(crate) struct OomWatch {
    /// `memory.events` of the container's v2 cgroup.
    own: Option<Events>,
    /// The same of the parent, if the cgroup is a scope: systemd may remove that before its last
    /// event is read. The parent counts what happens below it, so what it has counted in the
    /// meantime is taken to be the container's.
    parent: Option<Events>,
    /// `memory.oom_control` of v1, which exists for as long as the shim does.
    controls: Vec<PathBuf>,
    /// Whether there has been one.
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

    /// Reads the file. Only a file that has been read since its last change reports the next one
    /// (poll(2) of kernfs).
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
        let controls = cgroups
            .controllers
            .iter()
            .map(|directory| directory.join("memory.oom_control"))
            .collect();
        Self { own, parent: parent.and_then(Events::open), controls, seen: false }
    }

    /// Descriptors to be polled for POLLPRI.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.own.iter().chain(&self.parent).map(|events| events.file.as_fd())
    }

    /// Reads the counters, and returns whether there has been an OOM kill so far.
    pub(crate) fn read(&mut self) -> bool {
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
