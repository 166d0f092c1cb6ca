//! Limits as CRI gives them, and what systemd and cgroup v2 make of CPU shares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::block_io::BlockIo;

/// What a container may use. 0 and empty mean: not given. CRI's `LinuxContainerResources`, and what
/// clients of the engine can say besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
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
    /// Bytes that are taken from it last when memory is short.
    pub memory_reservation: i64,
    /// 0 to 100: how readily its memory is swapped out. Only v1 has it.
    pub memory_swappiness: Option<u64>,
    /// Whether its processes wait for memory and are not killed. Only v1 has it.
    pub oom_kill_disable: bool,
    /// Processes and threads; -1 is no limit.
    pub pids_limit: i64,
    /// Microseconds of real-time tasks, in each period. Only v1 has it, in some kernels.
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    /// Most ask for none, and what a request asks for is kept in many places.
    pub block_io: Option<Box<BlockIo>>,
    pub oom_score_adj: i64,
    /// Page size, as in "2MB", and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Files of cgroup v2 and what is written to them, after everything else.
    pub unified: Vec<(String, String)>,
}

impl Resources {
    /// These, with what `change` gives instead (UpdateContainerResources).
    pub fn changed(&self, change: Self) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
        let mut unified: BTreeMap<String, String> = self.unified.iter().cloned().collect();
        unified.extend(change.unified);
        Self {
            cpu_period: number(change.cpu_period, self.cpu_period),
            cpu_quota: number(change.cpu_quota, self.cpu_quota),
            cpu_shares: number(change.cpu_shares, self.cpu_shares),
            cpuset_cpus: text(change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(change.cpuset_mems, &self.cpuset_mems),
            memory_limit: number(change.memory_limit, self.memory_limit),
            memory_swap_limit: number(change.memory_swap_limit, self.memory_swap_limit),
            memory_reservation: number(change.memory_reservation, self.memory_reservation),
            memory_swappiness: change.memory_swappiness.or(self.memory_swappiness),
            oom_kill_disable: change.oom_kill_disable || self.oom_kill_disable,
            pids_limit: number(change.pids_limit, self.pids_limit),
            cpu_realtime_period: number(change.cpu_realtime_period, self.cpu_realtime_period),
            cpu_realtime_runtime: number(change.cpu_realtime_runtime, self.cpu_realtime_runtime),
            block_io: match (&self.block_io, change.block_io) {
                (Some(old), Some(new)) => Some(Box::new(old.changed(*new))),
                (old, new) => new.or_else(|| old.clone()),
            },
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

/// The weight of v2 (1..=10000, default 100) for shares of v1 (2..=262144, default 1024).
///
/// 2, 1024 and 262144 become 1, 100 and 10000, by the quadratic function of log2(shares) that runc
/// and crun have used since 2025. The linear one before it made 39 of the default.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_meet_the_weights_that_runc_gives() {
        for (shares, expected) in
            [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (u64::MAX, 10_000)]
        {
            assert_eq!(cpu_weight(shares), expected, "{shares}");
        }
        assert!((2..2000).all(|shares| cpu_weight(shares) <= cpu_weight(shares + 1)));
    }
}
