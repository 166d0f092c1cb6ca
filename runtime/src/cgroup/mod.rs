//! Cgroups: parent paths, creation with limits, removal. cgroups-rs does the work behind this module, which closes its gaps:
//! a leading `/` would silently set no limit, v2 ignores `unified` keys, and a hybrid host's v2 tree is not seen.

mod details;
mod devices;
mod limits;
mod scope;
mod usage;

use std::{
    fs,
    io::{self, Read, Seek},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use berth_shim::spec::Cgroups;
use cgroups_rs::fs::{Cgroup, hierarchies};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) use details::{Details, DeviceIo};
pub(crate) use devices::{DeviceRule, Devices};
pub(crate) use limits::Resources;
pub(crate) use scope::Scopes;
pub(crate) use usage::{Pressure, Sampler, Stall, Usage};

use crate::config::Driver;

/// Controllers of v1 that a container needs: each one costs a directory, and a write to join it.
const CONTROLLERS: [&str; 8] = ["blkio", "cpu", "cpuacct", "cpuset", "devices", "hugetlb", "memory", "pids"];
const ROOT: &str = "/sys/fs/cgroup";
/// Where the v2 tree is on a hybrid host.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// Parent of pods that name none.
const DEFAULT_PARENT: &str = "berth";
const DEFAULT_SLICE: &str = "berth.slice";

/// What a host offers, found once.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub driver: Driver,
    /// Root of the v2 tree, where there is one.
    unified: Option<PathBuf>,
    /// Whether v2 has the controllers; else they are on v1.
    pub is_v2: bool,
    /// Roots of the v1 hierarchies, links to a shared mount counted once.
    controllers: Vec<PathBuf>,
    /// Held while a cgroup is made, and while the parent of pods without one goes with the last of them.
    parent: Arc<Mutex<()>>,
}

impl Host {
    pub(crate) fn detect(driver: Driver) -> Self {
        let is_v2 = hierarchies::is_cgroup2_unified_mode();
        let unified = [ROOT, UNIFIED]
            .into_iter()
            .map(PathBuf::from)
            .find(|root| root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists());
        let mut controllers: Vec<PathBuf> = match is_v2 {
            true => Vec::new(),
            false => CONTROLLERS.iter().filter_map(|name| Path::new(ROOT).join(name).canonicalize().ok()).collect(),
        };
        controllers.retain(|root| root.join("cgroup.procs").exists());
        controllers.sort_unstable();
        controllers.dedup();
        Self { driver, unified, is_v2, controllers, parent: Arc::default() }
    }

    /// Names of the mounted v1 hierarchies, for /sys/fs/cgroup of a container; empty on v2.
    pub(crate) fn v1_names(&self) -> Vec<String> {
        if self.is_v2 {
            return Vec::new();
        }
        let mounted = |name: &&str| Path::new(ROOT).join(name).join("cgroup.procs").exists();
        CONTROLLERS.into_iter().filter(mounted).map(str::to_owned).collect()
    }

    /// `<parent>/<id>`, or with systemd `<slices>/berth-<id>.scope`, without a leading slash. The kubelet gives the parent in
    /// cgroupfs form either way.
    ///
    /// # Errors
    /// A parent with `..` in it, or with systemd one that is not a slice.
    pub(crate) fn path(&self, parent: &str, id: &str) -> anyhow::Result<String> {
        let parent = parent.trim_matches('/');
        if parent.split('/').any(|part| part == "..") {
            bail!("cgroup parent {parent:?} leads out of the tree");
        }
        match self.driver {
            Driver::Cgroupfs => Ok(format!("{}/{id}", if parent.is_empty() { DEFAULT_PARENT } else { parent })),
            Driver::Systemd => {
                let slice = parent.rsplit('/').next().filter(|slice| !slice.is_empty()).unwrap_or(DEFAULT_SLICE);
                Ok(format!("{}/{}", scope::slice_path(slice)?, scope::unit(id)))
            }
        }
    }

    /// The cgroup above those of a pod whose parent this is; `None` where pods name none, as they share it.
    pub(crate) fn parent(&self, parent: &str) -> Option<String> {
        let path = self.path(parent, "").ok().filter(|_| !parent.trim_matches('/').is_empty())?;
        path.rsplit_once('/').map(|(parent, _)| parent.to_owned())
    }

    /// Where the cgroup `path` is, in every tree that it needs.
    pub(crate) fn directories(&self, path: &str) -> Cgroups {
        let below = |root: &PathBuf| root.join(path);
        Cgroups {
            unified: self.unified.as_ref().map(below),
            is_scope: self.driver == Driver::Systemd,
            controllers: self.controllers.iter().map(below).collect(),
        }
    }

    /// Makes the cgroup `path`, unless systemd has, and sets its limits.
    pub(crate) fn create(&self, path: &str, resources: &Resources, devices: &Devices) -> anyhow::Result<()> {
        let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = match (self.driver, self.is_v2) {
            (Driver::Systemd, true) => self.load(path),
            (_, is_v2) => {
                let wanted = (!is_v2).then(|| CONTROLLERS.map(str::to_owned).to_vec());
                Cgroup::new_with_specified_controllers(hierarchies::auto(), path, wanted)
                    .with_context(|| format!("make cgroup {path}"))?
            }
        };
        if let Some(directory) = self.directories(path).unified {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        self.limit(&cgroup, path, resources)?;
        if let (false, Devices::Only(rules)) = (self.is_v2, devices) {
            devices::restrict(&cgroup, rules).with_context(|| format!("restrict devices of cgroup {path}"))?;
        }
        Ok(())
    }

    fn load(&self, path: &str) -> Cgroup {
        match self.is_v2 {
            true => Cgroup::load(hierarchies::auto(), path),
            false => {
                let controllers = CONTROLLERS.map(str::to_owned).to_vec();
                Cgroup::load_with_specified_controllers(hierarchies::auto(), path, controllers)
            }
        }
    }

    /// What the shim attaches to a cgroup of v2, where no file says which devices it may use.
    pub(crate) fn device_program(&self, devices: &Devices) -> Option<Vec<u8>> {
        match devices {
            Devices::Only(rules) if self.is_v2 => Some(devices::program(rules)),
            Devices::Only(_) | Devices::All => None,
        }
    }

    /// Names of the processes in the cgroup `path`.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Cgroups { unified, controllers, .. } = self.directories(path);
        let Some(directory) = unified.iter().chain(&controllers).next() else { return Vec::new() };
        let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.lines().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok()).collect()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.directories(path).unified.is_some_and(|directory| directory.exists())
    }

    /// Kills what lives in the cgroup and waits until it is empty, then removes it. Success when it is not there. Blocks.
    ///
    /// # Errors
    /// A process does not die, or is in a cgroup of v1 alone, where only its shim can kill it.
    pub(crate) fn destroy(&self, path: &str) -> anyhow::Result<()> {
        let Cgroups { unified, controllers, is_scope } = self.directories(path);
        if let Some(directory) = &unified {
            kill(directory).with_context(|| format!("kill {}", directory.display()))?;
        }
        // systemd removes its own once it is empty, and would keep a unit whose directory went without it.
        let mut directories = unified.iter().filter(|_| !is_scope).chain(&controllers);
        directories.try_for_each(|directory| {
            remove_tree(directory).with_context(|| format!("remove {}", directory.display()))
        })?;
        if path.strip_prefix(DEFAULT_PARENT).is_some_and(|rest| rest.starts_with('/')) {
            let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
            let Cgroups { unified, controllers, .. } = self.directories(DEFAULT_PARENT);
            // Not empty, as long as another pod is in it.
            unified.iter().chain(&controllers).for_each(|directory| drop(fs::remove_dir(directory)));
        }
        Ok(())
    }
}

/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// Success when it is not there, or goes while this looks: ENODEV is a file whose cgroup was removed after it was opened.
fn kill(directory: &Path) -> io::Result<()> {
    match kill_and_wait(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn kill_and_wait(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.kill"), "1")?;
    let mut events = fs::File::open(directory.join("cgroup.events"))?;
    let deadline = Instant::now() + DYING;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "killed processes are still there"));
        }
        // The kernel says so when the file changes (cgroup-v2.rst, "populated notification").
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_tree(&entry.path())?;
        }
    }
    gone(fs::remove_dir(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(driver: Driver) -> Host {
        Host { driver, unified: None, is_v2: true, controllers: Vec::new(), parent: Arc::default() }
    }

    #[test]
    fn paths_stay_in_the_tree() {
        let path = |parent| host(Driver::Cgroupfs).path(parent, "abc");
        assert_eq!(path("").unwrap(), "berth/abc");
        assert_eq!(path("/kubepods/pod1/").unwrap(), "kubepods/pod1/abc");
        assert!(path("/kubepods/../..").is_err());
        let parent = |parent| host(Driver::Cgroupfs).parent(parent);
        assert_eq!((parent("/kubepods/pod1").as_deref(), parent("/")), (Some("kubepods/pod1"), None));
    }

    #[test]
    fn with_systemd_they_are_scopes_in_slices() {
        let path = |parent| host(Driver::Systemd).path(parent, "abc");
        assert_eq!(path("").unwrap(), "berth.slice/berth-abc.scope");
        assert_eq!(path("/a.slice/a-b.slice").unwrap(), "a.slice/a-b.slice/berth-abc.scope");
        assert_eq!(path("a-b.slice").unwrap(), "a.slice/a-b.slice/berth-abc.scope");
        assert!(path("/kubepods/pod1").is_err());
        assert_eq!(host(Driver::Systemd).parent("/a.slice/a-b.slice").as_deref(), Some("a.slice/a-b.slice"));
    }
}
