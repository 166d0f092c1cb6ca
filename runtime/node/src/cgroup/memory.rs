//! Limits of memory: how much, with how much swap, and what happens when it is short.

use anyhow::{Context, bail};
use cgroups_rs::fs::{Cgroup, memory::MemController};

use super::{hierarchies::Hierarchies, limits::step, resources::Resources};

impl Hierarchies {
    pub(super) fn limit_memory(
        &self,
        cgroup: &Cgroup,
        path: &str,
        resources: &Resources,
    ) -> anyhow::Result<()> {
        if resources.memory_limit != 0 {
            self.limit_use(cgroup, path, resources)?;
        }
        if resources.memory_reservation > 0 {
            let file = self.name("memory.low", "memory.soft_limit_in_bytes");
            self.write("memory", path, file, resources.memory_reservation)?;
        }
        if let Some(swappiness) = resources.memory_swappiness {
            self.check_v1("memory.swappiness")?;
            self.write("memory", path, "memory.swappiness", swappiness)?;
        }
        if resources.oom_kill_disable {
            self.check_v1("memory.oom_control")?;
            self.write("memory", path, "memory.oom_control", 1)?;
        }
        Ok(())
    }

    fn check_v1(&self, file: &str) -> anyhow::Result<()> {
        if self.is_v2 {
            bail!("cgroup v2 has no {file}");
        }
        Ok(())
    }

    /// The limit of memory, and that of swap with it.
    fn limit_use(&self, cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let Some(memory) = cgroup.controller_of::<MemController>() else { return Ok(()) };
        let swap = self.swap_limit(resources);
        if memory.set_limit(resources.memory_limit).is_err() {
            // v1 keeps the limit of memory below that of memory and swap together: to raise both,
            // the sum goes first. If that fails too, the next line says so.
            let _ = memory.set_memswap_limit(swap);
            memory.set_limit(resources.memory_limit).with_context(|| step("memory", path))?;
        }
        match memory.set_memswap_limit(swap) {
            // A kernel without swap accounting has no such file, and nobody asked for a limit.
            Err(_) if resources.memory_swap_limit <= 0 => Ok(()),
            result => result.with_context(|| step("swap", path)),
        }
    }

    /// The value of the swap limit's file: v1 counts memory and swap together, v2 swap alone. A
    /// limit that is not given is no swap beyond the memory.
    fn swap_limit(&self, resources: &Resources) -> i64 {
        match (resources.memory_swap_limit, self.is_v2) {
            (-1, _) => -1,
            (0, true) => 0,
            (0, false) => resources.memory_limit,
            (total, true) => (total - resources.memory_limit).max(0),
            (total, false) => total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_total_on_v1_and_alone_on_v2() {
        let limits = |memory_limit, memory_swap_limit| Resources {
            memory_limit,
            memory_swap_limit,
            ..Default::default()
        };
        let host = |is_v2| Hierarchies {
            is_v2,
            ..Hierarchies::detect(berth_base::config::Driver::Cgroupfs)
        };
        for (memory, swap, v1, v2) in [(100, 0, 100, 0), (100, 150, 150, 50), (100, -1, -1, -1)] {
            assert_eq!(host(false).swap_limit(&limits(memory, swap)), v1);
            assert_eq!(host(true).swap_limit(&limits(memory, swap)), v2);
        }
    }
}
