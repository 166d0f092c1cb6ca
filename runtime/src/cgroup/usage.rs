//! What a cgroup uses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{Host, ROOT};

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

impl Host {
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
}

/// The number after `name` in a file of such lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
