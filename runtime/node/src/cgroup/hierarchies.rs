//! The cgroup hierarchies of a host, and where a cgroup is in them.
//!
//! On v2 there is one tree with all controllers. On v1 each controller, or group of controllers,
//! has a tree of its own; a hybrid host has those, and a v2 tree without controllers besides, which
//! is good for cgroup.kill.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::bail;
use berth_base::config::Driver;
use berth_shim::spec::Cgroups;
use cgroups_rs::fs::hierarchies;

use super::slice;

pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// Where a hybrid host has its v2 tree.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// The controllers of v1 that a container needs. The others are left out: each one costs a
/// directory for every container, and a write to join it.
pub(super) const CONTROLLERS: [&str; 8] =
    ["blkio", "cpu", "cpuacct", "cpuset", "devices", "hugetlb", "memory", "pids"];
/// The parent of pods that name none.
pub(super) const DEFAULT_PARENT: &str = "berth";
const DEFAULT_SLICE: &str = "berth.slice";

/// What was found of cgroups when the daemon started.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    pub driver: Driver,
    /// The root of the v2 tree, if there is one.
    pub(super) unified: Option<PathBuf>,
    /// Whether the controllers are on v2; if not, they are on v1.
    pub is_v2: bool,
    /// The roots of the v1 trees. Controllers that share one are links to it, and count once.
    pub(super) controllers: Vec<PathBuf>,
    /// The root of the freezer of v1, where there is no v2 tree, which can freeze by itself.
    pub(super) freezer: Option<PathBuf>,
    /// Held while a cgroup is made below the default parent, and while that is removed with the
    /// last of them. Without it, the parent could be gone before its child is made.
    pub(super) parent: Arc<Mutex<()>>,
}

impl Hierarchies {
    pub fn detect(driver: Driver) -> Self {
        let is_v2 = hierarchies::is_cgroup2_unified_mode();
        // A v1 tree has no cgroup.controllers.
        let unified = [ROOT, UNIFIED].into_iter().map(PathBuf::from).find(|root| {
            root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists()
        });
        let mut controllers: Vec<PathBuf> = Vec::new();
        if !is_v2 {
            // `cpu` and `cpuacct`, for example, are usually links to `cpu,cpuacct`.
            let roots = CONTROLLERS.iter().map(|name| Path::new(ROOT).join(name).canonicalize());
            controllers.extend(roots.flatten().filter(|root| root.join("cgroup.procs").exists()));
        }
        let freezer = Path::new(ROOT).join("freezer").canonicalize().ok();
        let freezer =
            freezer.filter(|root| unified.is_none() && root.join("cgroup.procs").exists());
        controllers.extend(freezer.clone());
        controllers.sort_unstable();
        controllers.dedup();
        Self { driver, unified, is_v2, controllers, freezer, parent: Arc::default() }
    }

    /// The names of the mounted v1 trees, for /sys/fs/cgroup of a container; none on v2.
    pub fn v1_names(&self) -> Vec<String> {
        if self.is_v2 {
            return Vec::new();
        }
        let is_mounted = |name: &&str| Path::new(ROOT).join(name).join("cgroup.procs").exists();
        CONTROLLERS.into_iter().filter(is_mounted).map(str::to_owned).collect()
    }

    /// The directories of the cgroup `path` in the trees of `v1_names`, in their order.
    pub fn v1_directories(&self, path: &str) -> Vec<PathBuf> {
        self.v1_names().iter().map(|name| self.directory(name, path)).collect()
    }

    /// The path of the cgroup of a container: `<parent>/<id>`, or with systemd
    /// `<slices>/berth-<id>.scope`. It has no leading slash, with which cgroups-rs would leave the
    /// tree and set no limits. The kubelet gives the parent as a path with either driver.
    ///
    /// # Errors
    /// The parent has `..` or a NUL byte in it, or with systemd, it is not a slice.
    pub fn path(&self, parent: &str, id: &str) -> anyhow::Result<String> {
        let parent = parent.trim_matches('/');
        if parent.contains('\0') || parent.split('/').any(|part| part == "..") {
            bail!("cgroup parent {parent:?} leads out of the tree");
        }
        match self.driver {
            Driver::Cgroupfs => {
                let parent = if parent.is_empty() { DEFAULT_PARENT } else { parent };
                Ok(format!("{parent}/{id}"))
            }
            Driver::Systemd => {
                // The last slice names all of those above it.
                let slice = parent.rsplit('/').next().filter(|slice| !slice.is_empty());
                let slices = slice::path(slice.unwrap_or(DEFAULT_SLICE))?;
                Ok(format!("{slices}/{}", slice::scope(id)))
            }
        }
    }

    /// The cgroup of a pod with this parent; `None` for pods that name no parent, which share the
    /// default one.
    pub fn parent(&self, parent: &str) -> Option<String> {
        if parent.trim_matches('/').is_empty() {
            return None;
        }
        let path = self.path(parent, "").ok()?;
        path.rsplit_once('/').map(|(parent, _)| parent.to_owned())
    }

    /// The directories of the cgroup `path`, one in each tree that it needs.
    pub fn directories(&self, path: &str) -> Cgroups {
        Cgroups {
            unified: self.unified.as_ref().map(|root| root.join(path)),
            is_scope: self.driver == Driver::Systemd,
            controllers: self.controllers.iter().map(|root| root.join(path)).collect(),
        }
    }

    /// The path of the cgroup that has these directories; `None` if they are not in these trees.
    pub fn path_of(&self, cgroups: &Cgroups) -> Option<String> {
        below(self.unified.as_ref(), cgroups.unified.as_ref())
            .or_else(|| below(self.controllers.first(), cgroups.controllers.first()))
    }

    /// The directory of the cgroup `path` in the tree that has this controller.
    pub(super) fn directory(&self, controller: &str, path: &str) -> PathBuf {
        match self.is_v2 {
            true => Path::new(ROOT).join(path),
            false => Path::new(ROOT).join(controller).join(path),
        }
    }

    /// The name of a file that each version has under another name.
    pub(super) fn name(&self, v2: &'static str, v1: &'static str) -> &'static str {
        if self.is_v2 { v2 } else { v1 }
    }

    pub fn exists(&self, path: &str) -> bool {
        self.directories(path).unified.is_some_and(|directory| directory.exists())
    }

    /// The names (proc_pid_comm(5)) of the processes in the cgroup `path`, without those below it.
    /// A shim that is starting a container tells by its name what it is doing.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Cgroups { unified, controllers, .. } = self.directories(path);
        let Some(directory) = unified.iter().chain(&controllers).next() else { return Vec::new() };
        let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.lines()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
            .collect()
    }

    /// The ids of the processes in the cgroup `path` and below it, where execs may be.
    pub fn processes(&self, path: &str) -> Vec<u32> {
        let mut found = Vec::new();
        collect_processes(&self.directory("memory", path), &mut found);
        found
    }
}

fn below(root: Option<&PathBuf>, directory: Option<&PathBuf>) -> Option<String> {
    let path = directory?.strip_prefix(root?).ok()?.to_str()?;
    (!path.is_empty()).then(|| path.to_owned())
}

fn collect_processes(directory: &Path, found: &mut Vec<u32>) {
    // A cgroup that is removed meanwhile has none.
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(pids.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(driver: Driver) -> Hierarchies {
        Hierarchies {
            driver,
            unified: None,
            is_v2: true,
            controllers: Vec::new(),
            freezer: None,
            parent: Arc::default(),
        }
    }

    #[test]
    fn paths_stay_in_the_tree() {
        let path = |parent| host(Driver::Cgroupfs).path(parent, "abc");
        assert_eq!(path("").unwrap(), "berth/abc");
        assert_eq!(path("/kubepods/pod1/").unwrap(), "kubepods/pod1/abc");
        assert!(path("/kubepods/../..").is_err() && path("..").is_err() && path("a\0b").is_err());
        let parent = |parent| host(Driver::Cgroupfs).parent(parent);
        assert_eq!(
            (parent("/kubepods/pod1").as_deref(), parent("/")),
            (Some("kubepods/pod1"), None)
        );
    }

    #[test]
    fn with_systemd_they_are_scopes_in_slices() {
        let path = |parent| host(Driver::Systemd).path(parent, "abc");
        assert_eq!(path("").unwrap(), "berth.slice/berth-abc.scope");
        assert_eq!(path("/a.slice/a-b.slice").unwrap(), "a.slice/a-b.slice/berth-abc.scope");
        assert_eq!(path("a-b.slice").unwrap(), "a.slice/a-b.slice/berth-abc.scope");
        assert!(path("/kubepods/pod1").is_err());
        assert_eq!(
            host(Driver::Systemd).parent("/a.slice/a-b.slice").as_deref(),
            Some("a.slice/a-b.slice")
        );
    }
}
