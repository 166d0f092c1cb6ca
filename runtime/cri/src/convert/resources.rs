//! Limits of containers and pods in berth's types.

use std::collections::BTreeMap;

use berth_node::cgroup::Resources;
use berth_proto::v1;

pub(crate) fn resources(resources: v1::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        memory_limit: resources.memory_limit_in_bytes,
        memory_swap_limit: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        hugepage_limits: resources
            .hugepage_limits
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect(),
        // Sorted, so that they are written in the same order each time.
        unified: resources.unified.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect(),
        // What else there is has no field in CRI.
        ..Resources::default()
    }
}
