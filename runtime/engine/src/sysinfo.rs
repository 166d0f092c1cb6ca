//! What this machine can limit, and how much of it there is.

use std::{collections::BTreeSet, fs, path::Path, thread};

const ROOT: &str = "/sys/fs/cgroup";

/// Found anew for each request that asks: it is some small files of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SysInfo {
    pub is_v2: bool,
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// As in `0-3`.
    pub cpu_list: String,
    pub memory_nodes: String,
    pub memory_limit: bool,
    pub memory_reservation: bool,
    pub swap_limit: bool,
    pub swappiness: bool,
    pub oom_kill_disable: bool,
    pub kernel_memory_tcp: bool,
    pub cpu_shares: bool,
    pub cpu_cfs: bool,
    pub cpuset: bool,
    pub pids_limit: bool,
    pub blkio_weight: bool,
    pub blkio_weight_device: bool,
    pub blkio_throttle: bool,
    pub ipv4_forwarding: bool,
}

impl SysInfo {
    pub(crate) fn read() -> Self {
        let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
        let machine = Self {
            cpus: thread::available_parallelism().map_or(1, usize::from),
            memory: memory(),
            ipv4_forwarding: text("/proc/sys/net/ipv4/ip_forward") == "1",
            ..Self::default()
        };
        match controllers {
            Ok(controllers) => machine.with_v2(&controllers),
            Err(_) => machine.with_v1(),
        }
    }

    fn with_v2(self, controllers: &str) -> Self {
        let has = |name: &str| controllers.split_whitespace().any(|known| known == name);
        Self {
            is_v2: true,
            cpu_list: text(&format!("{ROOT}/cpuset.cpus.effective")),
            memory_nodes: text(&format!("{ROOT}/cpuset.mems.effective")),
            memory_limit: has("memory"),
            memory_reservation: has("memory"),
            swap_limit: has("memory") && has_swap_limit(),
            cpu_shares: has("cpu"),
            cpu_cfs: has("cpu"),
            cpuset: has("cpuset"),
            pids_limit: has("pids"),
            blkio_weight: has("io"),
            blkio_weight_device: has("io"),
            blkio_throttle: has("io"),
            ..self
        }
    }

    fn with_v1(self) -> Self {
        let has = |file: &str| Path::new(ROOT).join(file).exists();
        Self {
            cpu_list: text(&format!("{ROOT}/cpuset/cpuset.cpus")),
            memory_nodes: text(&format!("{ROOT}/cpuset/cpuset.mems")),
            memory_limit: has("memory/memory.limit_in_bytes"),
            memory_reservation: has("memory/memory.soft_limit_in_bytes"),
            swap_limit: has("memory/memory.memsw.limit_in_bytes"),
            swappiness: has("memory/memory.swappiness"),
            oom_kill_disable: has("memory/memory.oom_control"),
            kernel_memory_tcp: has("memory/memory.kmem.tcp.limit_in_bytes"),
            cpu_shares: has("cpu/cpu.shares"),
            cpu_cfs: has("cpu/cpu.cfs_quota_us"),
            cpuset: has("cpuset/cpuset.cpus"),
            pids_limit: has("pids/cgroup.procs"),
            blkio_weight: has("blkio/blkio.weight"),
            blkio_weight_device: has("blkio/blkio.weight_device"),
            blkio_throttle: has("blkio/blkio.throttle.read_bps_device"),
            ..self
        }
    }
}

/// Whether a cgroup of v2 can limit swap. The root has no limits, so that this looks at the daemon's
/// own cgroup.
fn has_swap_limit() -> bool {
    let own = text("/proc/self/cgroup");
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
    path.is_some_and(|path| Path::new(ROOT).join(path).join("memory.swap.max").exists())
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory() -> u64 {
    let info = text("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// The numbers of a list such as `0-2,7` (cpuset(7)). `None` if it is none.
pub(crate) fn parse_list(list: &str) -> Option<BTreeSet<u32>> {
    /// More than any machine has.
    const MAX: u32 = 8192;
    let mut numbers = BTreeSet::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > MAX {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0-2,7"), Some(BTreeSet::from([0, 1, 2, 7])));
        assert_eq!(parse_list(""), Some(BTreeSet::new()));
        assert_eq!(
            (parse_list("x"), parse_list("2-1"), parse_list("0-99999999")),
            (None, None, None)
        );
    }
}
