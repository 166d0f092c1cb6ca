//! The limits of a container.

use berth_node::cgroup::Resources;

use crate::api::host_config::HostConfig;

/// The period for which a number of CPUs is a quota, in microseconds.
const PERIOD: i64 = 100_000;

/// What is asked for; 0 is no limit.
pub(crate) fn resources(host: &HostConfig) -> Resources {
    let (cpu_period, cpu_quota) = match host.nano_cpus {
        0 => (host.cpu_period, host.cpu_quota),
        nano => (PERIOD, nano / (1_000_000_000 / PERIOD)),
    };
    Resources {
        cpu_period,
        cpu_quota,
        cpu_shares: host.cpu_shares,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        memory_limit: host.memory,
        // Twice the memory, unless something else is asked for.
        memory_swap_limit: match (host.memory, host.memory_swap) {
            (memory, 0) if memory > 0 => memory.saturating_mul(2),
            (_, swap) => swap,
        },
        oom_score_adj: host.oom_score_adj,
        ..Resources::default()
    }
}
