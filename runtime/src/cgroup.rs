//! Cgroups: parent paths, creation with limits, removal. cgroups-rs does the work behind this module, which closes its gaps:
//! a leading `/` would silently set no limit, v2 ignores `unified` keys, and a hybrid host's v2 tree is not seen.

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
use cgroups_rs::fs::{
    Cgroup, MaxValue, Subsystem,
    cpu::CpuController,
    cpuset::CpuSetController,
    devices::{DevicePermissions, DeviceType, DevicesController},
    hierarchies,
    memory::MemController,
    pid::PidController,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// Controllers of v1 that a container needs: each one costs a directory, and a write to join it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "devices", "memory", "pids"];
const ROOT: &str = "/sys/fs/cgroup";
/// Where the v2 tree is on a hybrid host.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// Parent of pods that name none.
const DEFAULT_PARENT: &str = "berth";
/// mknod of anything and the nodes of /dev (OCI runtime specification, "Default Devices", and what containerd allows besides).
const ALLOWED_DEVICES: [(DeviceType, i64, i64, &str); 9] = [
    (DeviceType::Char, -1, -1, "m"),
    (DeviceType::Block, -1, -1, "m"),
    (DeviceType::Char, 1, 3, "rwm"),
    (DeviceType::Char, 1, 5, "rwm"),
    (DeviceType::Char, 1, 7, "rwm"),
    (DeviceType::Char, 1, 8, "rwm"),
    (DeviceType::Char, 1, 9, "rwm"),
    (DeviceType::Char, 5, -1, "rwm"),
    (DeviceType::Char, 136, -1, "rwm"),
];

/// Limits as CRI gives them; 0 and empty mean: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds in each period; -1 is no limit.
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Bytes.
    pub memory_limit: i64,
    /// Bytes of memory and swap together; -1 is no limit.
    pub memory_swap_limit: i64,
    pub oom_score_adj: i64,
    /// Page size and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Files of cgroup v2, written last.
    pub unified: Vec<(String, String)>,
}

/// What a container may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// Privileged.
    All,
    /// The nodes that every container has, and these.
    Only(Vec<DeviceRule>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    pub block: bool,
    pub major: i64,
    pub minor: i64,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

impl Resources {
    /// These, with what `change` names instead; 0 and empty leave it as it is (`UpdateContainerResources`).
    pub(crate) fn changed(&self, change: Self) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
        let mut unified: std::collections::BTreeMap<String, String> = self.unified.iter().cloned().collect();
        unified.extend(change.unified);
        Self {
            cpu_period: number(change.cpu_period, self.cpu_period),
            cpu_quota: number(change.cpu_quota, self.cpu_quota),
            cpu_shares: number(change.cpu_shares, self.cpu_shares),
            cpuset_cpus: text(change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(change.cpuset_mems, &self.cpuset_mems),
            memory_limit: number(change.memory_limit, self.memory_limit),
            memory_swap_limit: number(change.memory_swap_limit, self.memory_swap_limit),
            oom_score_adj: number(change.oom_score_adj, self.oom_score_adj),
            hugepage_limits: if change.hugepage_limits.is_empty() {
                self.hugepage_limits.clone()
            } else {
                change.hugepage_limits
            },
            unified: unified.into_iter().collect(),
        }
    }
}

/// What a cgroup uses. What the kernel does not count is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub cpu_nanos: u64,
    /// Bytes, as are the next four.
    pub memory: u64,
    /// Without the file pages that the kernel would drop first.
    pub working_set: u64,
    pub rss: u64,
    pub swap: Option<u64>,
    pub memory_limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

/// What a host offers, found once.
#[derive(Clone, Debug)]
pub(crate) struct Host {
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
    pub(crate) fn detect() -> Self {
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
        Self { unified, is_v2, controllers, parent: Arc::default() }
    }

    /// Names of the mounted v1 hierarchies, for /sys/fs/cgroup of a container; empty on v2.
    pub(crate) fn v1_names(&self) -> Vec<String> {
        if self.is_v2 {
            return Vec::new();
        }
        let mounted = |name: &&str| Path::new(ROOT).join(name).join("cgroup.procs").exists();
        CONTROLLERS.into_iter().filter(mounted).map(str::to_owned).collect()
    }

    /// `<parent>/<id>` without a leading slash. The kubelet gives the parent in cgroupfs form.
    ///
    /// # Errors
    /// A parent with `..` in it.
    pub(crate) fn path(parent: &str, id: &str) -> anyhow::Result<String> {
        let parent = parent.trim_matches('/');
        if parent.split('/').any(|part| part == "..") {
            bail!("cgroup parent {parent:?} leads out of the tree");
        }
        Ok(format!("{}/{id}", if parent.is_empty() { DEFAULT_PARENT } else { parent }))
    }

    /// Where the cgroup `path` is, in every tree that it needs.
    pub(crate) fn directories(&self, path: &str) -> Cgroups {
        let below = |root: &PathBuf| root.join(path);
        Cgroups { unified: self.unified.as_ref().map(below), controllers: self.controllers.iter().map(below).collect() }
    }

    /// Makes the cgroup `path` with its limits.
    pub(crate) fn create(&self, path: &str, resources: &Resources, devices: &Devices) -> anyhow::Result<()> {
        let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (!self.is_v2).then(|| CONTROLLERS.map(str::to_owned).to_vec());
        let cgroup = Cgroup::new_with_specified_controllers(hierarchies::auto(), path, wanted)
            .with_context(|| format!("make cgroup {path}"))?;
        if let Some(directory) = self.directories(path).unified {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        self.limit(&cgroup, path, resources)?;
        if let (false, Devices::Only(rules)) = (self.is_v2, devices) {
            restrict_devices(&cgroup, rules).with_context(|| format!("restrict devices of cgroup {path}"))?;
        }
        Ok(())
    }

    /// Reads the counters of `path`. Some files, no processes.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub(crate) fn usage(&self, path: &str) -> anyhow::Result<Usage> {
        let read = |controller: &str, file: &str| {
            let root = if self.is_v2 { PathBuf::from(ROOT) } else { Path::new(ROOT).join(controller) };
            let path = root.join(path).join(file);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let (memory, stat) = match self.is_v2 {
            true => ("memory.current", ["inactive_file", "anon", "pgfault", "pgmajfault"]),
            false => {
                ("memory.usage_in_bytes", ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"])
            }
        };
        let memory = number(&read("memory", memory)?).unwrap_or(0);
        let text = read("memory", "memory.stat")?;
        let [inactive, rss, page_faults, major_page_faults] = stat.map(|name| field(&text, name).unwrap_or(0));
        let cpu_nanos = match self.is_v2 {
            true => field(&read("cpu", "cpu.stat")?, "usage_usec").unwrap_or(0) * 1000,
            false => number(&read("cpuacct", "cpuacct.usage")?).unwrap_or(0),
        };
        let limit = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let swap = match self.is_v2 {
            true => read("memory", "memory.swap.current").ok().and_then(|text| number(&text)),
            false => field(&text, "total_swap"),
        };
        Ok(Usage {
            cpu_nanos,
            memory,
            working_set: memory.saturating_sub(inactive),
            rss,
            swap,
            // v1 writes "no limit" as a number near the largest one.
            memory_limit: number(&read("memory", limit)?).filter(|limit| *limit < 1 << 62),
            page_faults,
            major_page_faults,
        })
    }

    /// Sets the limits of a cgroup that is in use: all of them, or none.
    ///
    /// # Errors
    /// What the kernel refused; everything is as before then.
    pub(crate) fn update(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let cgroup = match self.is_v2 {
            true => Cgroup::load(hierarchies::auto(), path),
            false => {
                let controllers = CONTROLLERS.map(str::to_owned).to_vec();
                Cgroup::load_with_specified_controllers(hierarchies::auto(), path, controllers)
            }
        };
        let before = self.snapshot(path, resources);
        self.limit(&cgroup, path, resources).inspect_err(|_| restore(&before))
    }

    /// Every file that limits may change, with what is in it.
    fn snapshot(&self, path: &str, resources: &Resources) -> Vec<(PathBuf, String)> {
        let files: Vec<PathBuf> = match self.is_v2 {
            true => {
                let below = |file: &str| Path::new(ROOT).join(path).join(file);
                let own = LIMITS_V2.iter().map(|file| below(file));
                own.chain(resources.unified.iter().map(|(file, _)| below(file))).collect()
            }
            false => LIMITS_V1.iter().map(|(name, file)| Path::new(ROOT).join(name).join(path).join(file)).collect(),
        };
        files.into_iter().filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text))).collect()
    }

    fn limit(&self, cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let what = |name: &'static str| format!("limit {name} of cgroup {path}");
        if let Some(cpu) = cgroup.controller_of::<CpuController>() {
            if resources.cpu_shares > 0 {
                let shares = resources.cpu_shares as u64;
                cpu.set_shares(if self.is_v2 { weight(shares) } else { shares }).with_context(|| what("cpu shares"))?;
            }
            if resources.cpu_period > 0 {
                cpu.set_cfs_period(resources.cpu_period as u64).with_context(|| what("cpu period"))?;
            }
            if resources.cpu_quota != 0 {
                cpu.set_cfs_quota(resources.cpu_quota).with_context(|| what("cpu quota"))?;
            }
        }
        if let Some(cpuset) = cgroup.controller_of::<CpuSetController>() {
            if !resources.cpuset_cpus.is_empty() {
                cpuset.set_cpus(&resources.cpuset_cpus).with_context(|| what("cpuset cpus"))?;
            }
            if !resources.cpuset_mems.is_empty() {
                cpuset.set_mems(&resources.cpuset_mems).with_context(|| what("cpuset mems"))?;
            }
        }
        if let Some(memory) = cgroup.controller_of::<MemController>()
            && resources.memory_limit != 0
        {
            let swap = self.swap_limit(resources);
            if memory.set_limit(resources.memory_limit).is_err() {
                // v1 does not let memory pass the sum of memory and swap: raised, the sum goes first.
                let _ = memory.set_memswap_limit(swap);
                memory.set_limit(resources.memory_limit).with_context(|| what("memory"))?;
            }
            match memory.set_memswap_limit(swap) {
                // A kernel without swap accounting has nothing to limit.
                Err(_) if resources.memory_swap_limit == 0 => {}
                result => result.with_context(|| what("swap"))?,
            }
        }
        self.write_unified(cgroup, path, resources)
    }

    /// v1 counts memory and swap together, v2 swap alone. Not given means none beyond the memory.
    fn swap_limit(&self, resources: &Resources) -> i64 {
        match (resources.memory_swap_limit, self.is_v2) {
            (-1, _) => -1,
            (0, true) => 0,
            (0, false) => resources.memory_limit,
            (total, true) => (total - resources.memory_limit).max(0),
            (total, false) => total,
        }
    }

    /// v2's own files. On v1 the one that has a meaning there is the number of processes, which CRI has no field for.
    fn write_unified(&self, cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
        for (file, value) in &resources.unified {
            if file.contains('/') || !file.contains('.') {
                bail!("{file:?} is not a file of a cgroup");
            }
            if let (false, "pids.max", Some(pids)) =
                (self.is_v2, file.as_str(), cgroup.controller_of::<PidController>())
            {
                let limit = value.parse().map_or(MaxValue::Max, MaxValue::Value);
                pids.set_pid_max(limit).with_context(|| format!("limit pids of cgroup {path}"))?;
                continue;
            }
            let Some(root) = self.unified.as_ref().filter(|_| self.is_v2) else {
                bail!("unified resource {file} needs cgroup v2");
            };
            let path = root.join(path).join(file);
            fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))?;
        }
        Ok(())
    }

    /// Kills what lives in the cgroup and waits until it is empty, then removes it. Success when it is not there. Blocks.
    ///
    /// # Errors
    /// A process does not die, or is in a cgroup of v1 alone, where only its shim can kill it.
    pub(crate) fn destroy(&self, path: &str) -> anyhow::Result<()> {
        let Cgroups { unified, controllers } = self.directories(path);
        if let Some(directory) = &unified {
            kill(directory).with_context(|| format!("kill {}", directory.display()))?;
        }
        let mut directories = unified.iter().chain(&controllers);
        directories.try_for_each(|directory| {
            remove_tree(directory).with_context(|| format!("remove {}", directory.display()))
        })?;
        if path.strip_prefix(DEFAULT_PARENT).is_some_and(|rest| rest.starts_with('/')) {
            let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
            let Cgroups { unified, controllers } = self.directories(DEFAULT_PARENT);
            // Not empty, as long as another pod is in it.
            unified.iter().chain(&controllers).for_each(|directory| drop(fs::remove_dir(directory)));
        }
        Ok(())
    }
}

/// Files that limits are in, by controller.
const LIMITS_V1: [(&str, &str); 8] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("pids", "pids.max"),
];
const LIMITS_V2: [&str; 7] =
    ["cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.max", "memory.swap.max", "pids.max"];

/// Twice: values that bound each other go back in either order.
fn restore(before: &[(PathBuf, String)]) {
    for _ in 0..2 {
        for (path, text) in before.iter().filter(|(path, text)| fs::read_to_string(path).is_ok_and(|now| now != *text))
        {
            // A value that does not go back in the first pass may in the second.
            let _ = fs::write(path, text.trim());
        }
    }
}

/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);

fn kill(directory: &Path) -> io::Result<()> {
    match fs::write(directory.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    }
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

/// The number after `name` in a file of such lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
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

fn restrict_devices(cgroup: &Cgroup, rules: &[DeviceRule]) -> anyhow::Result<()> {
    let Some(devices) = cgroup.subsystems().iter().find_map(|subsystem| match subsystem {
        Subsystem::Devices(devices) => Some(devices),
        _ => None,
    }) else {
        return Ok(());
    };
    let devices: &DevicesController = devices;
    devices.deny_device(DeviceType::All, -1, -1, &DevicePermissions::all())?;
    for (kind, major, minor, permissions) in ALLOWED_DEVICES {
        devices.allow_device(kind, major, minor, &DevicePermissions::from_str(permissions)?)?;
    }
    for DeviceRule { block, major, minor, permissions } in rules {
        let kind = if *block { DeviceType::Block } else { DeviceType::Char };
        devices.allow_device(kind, *major, *minor, &DevicePermissions::from_str(permissions)?)?;
    }
    Ok(())
}

/// Shares of v1 (2..=262144, default 1024) to the weight of v2 (1..=10000, default 100), so that 2, 1024 and 262144 meet 1, 100
/// and 10000: the quadratic in log2 that runc and crun have used since 2025.
pub(crate) fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_meet_the_weights_that_runc_gives() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..2000).all(|shares| weight(shares) <= weight(shares + 1)));
    }

    #[test]
    fn paths_stay_in_the_tree() {
        assert_eq!(Host::path("", "abc").unwrap(), "berth/abc");
        assert_eq!(Host::path("/kubepods/pod1/", "abc").unwrap(), "kubepods/pod1/abc");
        assert!(Host::path("/kubepods/../..", "abc").is_err());
    }

    #[test]
    fn swap_is_total_on_v1_and_alone_on_v2() {
        let limits =
            |memory_limit, memory_swap_limit| Resources { memory_limit, memory_swap_limit, ..Default::default() };
        let host = |is_v2| Host { unified: None, is_v2, controllers: Vec::new(), parent: Arc::default() };
        for (memory, swap, v1, v2) in [(100, 0, 100, 0), (100, 150, 150, 50), (100, -1, -1, -1)] {
            assert_eq!(host(false).swap_limit(&limits(memory, swap)), v1);
            assert_eq!(host(true).swap_limit(&limits(memory, swap)), v2);
        }
    }
}
