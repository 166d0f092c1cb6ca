//! Setting limits: from CRI's numbers to files of a cgroup, all of them or none.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use cgroups_rs::fs::{
    Cgroup, MaxValue, cpu::CpuController, cpuset::CpuSetController, hierarchies, pid::PidController,
};

use super::{
    hierarchies::{CONTROLLERS, Hierarchies},
    resources::{Resources, cpu_weight},
};

/// The files that hold limits, with their controllers.
const FILES_V1: [(&str, &str); 13] = [
    ("blkio", "blkio.bfq.weight"),
    ("blkio", "blkio.weight"),
    ("cpu", "cpu.rt_period_us"),
    ("cpu", "cpu.rt_runtime_us"),
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("pids", "pids.max"),
];
const FILES_V2: [&str; 10] = [
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "io.bfq.weight",
    "io.weight",
    "memory.low",
    "memory.max",
    "memory.swap.max",
    "pids.max",
];

impl Hierarchies {
    /// Sets the limits of a cgroup that is in use: all of them, or none.
    ///
    /// # Errors
    /// What the kernel refused; everything is as before then.
    pub fn update(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let cgroup = self.load(path);
        let before = self.snapshot(path, resources);
        self.limit(&cgroup, path, resources).inspect_err(|_| restore(&before))
    }

    /// A cgroup that is there, as cgroups-rs has it.
    pub(super) fn load(&self, path: &str) -> Cgroup {
        match self.is_v2 {
            true => Cgroup::load(hierarchies::auto(), path),
            false => {
                let controllers = CONTROLLERS.map(str::to_owned).to_vec();
                Cgroup::load_with_specified_controllers(hierarchies::auto(), path, controllers)
            }
        }
    }

    /// Every file that these limits may change, with what is in it. A file that is not there
    /// belongs to a controller that this host does not have.
    fn snapshot(&self, path: &str, resources: &Resources) -> Vec<(PathBuf, String)> {
        let mut files: Vec<PathBuf> = Vec::new();
        if self.is_v2 {
            let directory = self.directory("", path);
            files.extend(FILES_V2.iter().map(|file| directory.join(file)));
            files.extend(resources.unified.iter().map(|(file, _)| directory.join(file)));
        } else {
            let file =
                |(controller, file): &(&str, &str)| self.directory(controller, path).join(file);
            files.extend(FILES_V1.iter().map(file));
        }
        for (size, _) in &resources.hugepage_limits {
            files.extend(self.huge_page_files(path, size));
        }
        let text = |path: PathBuf| fs::read_to_string(&path).ok().map(|text| (path, text));
        files.into_iter().filter_map(text).collect()
    }

    pub(super) fn limit(
        &self,
        cgroup: &Cgroup,
        path: &str,
        resources: &Resources,
    ) -> anyhow::Result<()> {
        self.limit_cpu(cgroup, path, resources)?;
        limit_cpuset(cgroup, path, resources)?;
        self.limit_memory(cgroup, path, resources)?;
        self.limit_pids(path, resources)?;
        if let Some(block_io) = &resources.block_io {
            self.limit_block_io(path, block_io)?;
        }
        self.limit_huge_pages(path, resources)?;
        // Last, since it may name the same files, and is the more exact way to say something.
        self.write_unified(cgroup, path, resources)
    }

    fn limit_cpu(&self, cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
        let Some(cpu) = cgroup.controller_of::<CpuController>() else { return Ok(()) };
        if resources.cpu_shares > 0 {
            let shares = resources.cpu_shares as u64;
            let value = if self.is_v2 { cpu_weight(shares) } else { shares };
            cpu.set_shares(value).with_context(|| step("cpu shares", path))?;
        }
        // The period first: the kernel compares the ratio of quota and period with the parent's.
        if resources.cpu_period > 0 {
            let period = resources.cpu_period as u64;
            cpu.set_cfs_period(period).with_context(|| step("cpu period", path))?;
        }
        if resources.cpu_quota != 0 {
            cpu.set_cfs_quota(resources.cpu_quota).with_context(|| step("cpu quota", path))?;
        }
        self.limit_realtime(path, resources)
    }

    fn limit_realtime(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        for (file, value) in [
            ("cpu.rt_period_us", resources.cpu_realtime_period),
            ("cpu.rt_runtime_us", resources.cpu_realtime_runtime),
        ] {
            if value == 0 {
                continue;
            }
            if self.is_v2 {
                bail!("cgroup v2 has no time for real-time tasks ({file})");
            }
            self.write("cpu", path, file, value)?;
        }
        Ok(())
    }

    fn limit_pids(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        match resources.pids_limit {
            0 => Ok(()),
            limit @ 1.. => self.write("pids", path, "pids.max", limit),
            _ => self.write("pids", path, "pids.max", "max"),
        }
    }

    /// Writes a file of a cgroup that cgroups-rs does not know, or not in both versions.
    pub(super) fn write(
        &self,
        controller: &str,
        path: &str,
        file: &str,
        value: impl std::fmt::Display,
    ) -> anyhow::Result<()> {
        let file = self.directory(controller, path).join(file);
        fs::write(&file, value.to_string())
            .with_context(|| format!("write {value} to {}", file.display()))
    }

    /// The kubelet names every page size of the node, mostly with 0. A host whose kernel does not
    /// count huge pages has no such files, and nothing to limit.
    fn limit_huge_pages(&self, path: &str, resources: &Resources) -> anyhow::Result<()> {
        for (size, limit) in &resources.hugepage_limits {
            // It becomes part of a file's name.
            if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                bail!("{size:?} is not a page size");
            }
            for file in self.huge_page_files(path, size).into_iter().filter(|file| file.exists()) {
                fs::write(&file, limit.to_string())
                    .with_context(|| format!("write {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// The limits of pages in use, and of reserved ones, which a program has by mmap(2) before it
    /// uses them: with the first limit alone it would be killed by SIGBUS instead of refused.
    fn huge_page_files(&self, path: &str, size: &str) -> [PathBuf; 2] {
        let directory = self.directory("hugetlb", path);
        let limit = self.name("max", "limit_in_bytes");
        ["", "rsvd."].map(|kind| directory.join(format!("hugetlb.{size}.{kind}{limit}")))
    }

    /// Writes files of v2. On v1 one of them has a meaning too: the number of processes, for which
    /// CRI has no other field.
    fn write_unified(
        &self,
        cgroup: &Cgroup,
        path: &str,
        resources: &Resources,
    ) -> anyhow::Result<()> {
        for (file, value) in &resources.unified {
            // All of them are `controller.name`; nothing else in the directory or beside it is.
            if file.contains('/') || !file.contains('.') {
                bail!("{file:?} is not a file of a cgroup");
            }
            if let (false, "pids.max", Some(pids)) =
                (self.is_v2, file.as_str(), cgroup.controller_of::<PidController>())
            {
                let limit = value.parse().map_or(MaxValue::Max, MaxValue::Value);
                pids.set_pid_max(limit).with_context(|| step("pids", path))?;
                continue;
            }
            let Some(root) = self.unified.as_ref().filter(|_| self.is_v2) else {
                bail!("unified resource {file} needs cgroup v2");
            };
            let path = root.join(path).join(file);
            fs::write(&path, value)
                .with_context(|| format!("write {value:?} to {}", path.display()))?;
        }
        Ok(())
    }
}

fn limit_cpuset(cgroup: &Cgroup, path: &str, resources: &Resources) -> anyhow::Result<()> {
    if resources.cpuset_cpus.is_empty() && resources.cpuset_mems.is_empty() {
        return Ok(());
    }
    // A container that asks for CPUs of its own must not run on all of them.
    let cpuset = cgroup.controller_of::<CpuSetController>().with_context(|| {
        format!("{}: no cpuset controller on this machine", step("cpuset", path))
    })?;
    if !resources.cpuset_cpus.is_empty() {
        cpuset.set_cpus(&resources.cpuset_cpus).with_context(|| step("cpuset cpus", path))?;
    }
    if !resources.cpuset_mems.is_empty() {
        cpuset.set_mems(&resources.cpuset_mems).with_context(|| step("cpuset mems", path))?;
    }
    Ok(())
}

pub(super) fn step(what: &str, path: &str) -> String {
    format!("limit {what} of cgroup {path}")
}

fn restore(before: &[(PathBuf, String)]) {
    // Some values bound each other, such as memory and the sum with swap: one that does not go back
    // in the first pass does in the second.
    for _ in 0..2 {
        for (path, text) in before {
            if fs::read_to_string(path).is_ok_and(|now| now != *text) {
                // The caller gets the error that made this necessary.
                let _ = fs::write(path, text.trim());
            }
        }
    }
}
