//! Limits: from CRI's words to files, all or none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use cgroups_rs::fs::{
    Cgroup, MaxValue, cpu::CpuController, cpuset::CpuSetController, memory::MemController, pid::PidController,
};
use serde::{Deserialize, Serialize};

use super::{Host, ROOT};

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

impl Host {
    /// Sets the limits of a cgroup that is in use: all of them, or none.
    ///
    /// # Errors
    /// What the kernel refused; everything is as before then.
    pub(crate) fn update(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let cgroup = self.load(path);
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
        let pages = resources.hugepage_limits.iter().flat_map(|(size, _)| self.huge_page_files(path, size));
        let files = files.into_iter().chain(pages);
        files.filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text))).collect()
    }

    pub(super) fn limit(&self, cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
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
        if !resources.cpuset_cpus.is_empty() || !resources.cpuset_mems.is_empty() {
            // Who asks for processors of their own is not served by all of them.
            let none = || format!("{}: no cpuset controller on this machine", what("cpuset"));
            let cpuset = cgroup.controller_of::<CpuSetController>().with_context(none)?;
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
        self.limit_huge_pages(path, resources)?;
        self.write_unified(cgroup, path, resources)
    }

    /// The kubelet names every page size, mostly with 0. A machine that does not count them has nothing to limit.
    fn limit_huge_pages(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        for (size, limit) in &resources.hugepage_limits {
            if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                bail!("{size:?} is not a page size");
            }
            for file in self.huge_page_files(path, size).into_iter().filter(|file| file.exists()) {
                fs::write(&file, limit.to_string()).with_context(|| format!("write {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// What is used, and what is reserved; what a machine counts of them is there.
    fn huge_page_files(&self, path: &str, size: &str) -> [PathBuf; 2] {
        let (root, limit) = match self.is_v2 {
            true => (Path::new(ROOT).join(path), "max"),
            false => (Path::new(ROOT).join("hugetlb").join(path), "limit_in_bytes"),
        };
        ["", "rsvd."].map(|kind| root.join(format!("hugetlb.{size}.{kind}{limit}")))
    }

    /// v1 counts memory and swap together, v2 swap alone. Not given means none beyond the memory.
    pub(super) fn swap_limit(&self, resources: &Resources) -> i64 {
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

/// Shares of v1 (2..=262144, default 1024) to the weight of v2 (1..=10000, default 100), so that 2, 1024 and 262144 meet 1, 100
/// and 10000: the quadratic in log2 that runc and crun have used since 2025.
pub(super) fn weight(shares: u64) -> u64 {
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
    fn swap_is_total_on_v1_and_alone_on_v2() {
        let limits =
            |memory_limit, memory_swap_limit| Resources { memory_limit, memory_swap_limit, ..Default::default() };
        let host = |is_v2| Host { is_v2, ..Host::detect(crate::config::Driver::Cgroupfs) };
        for (memory, swap, v1, v2) in [(100, 0, 100, 0), (100, 150, 150, 50), (100, -1, -1, -1)] {
            assert_eq!(host(false).swap_limit(&limits(memory, swap)), v1);
            assert_eq!(host(true).swap_limit(&limits(memory, swap)), v2);
        }
    }
}
