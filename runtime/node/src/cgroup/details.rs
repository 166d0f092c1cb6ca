//! What a cgroup counts besides its usage, for the metrics only.

use std::{collections::BTreeMap, fs, path::PathBuf};

use super::{
    files::{field, limit, number},
    hierarchies::Hierarchies,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub user_nanos: u64,
    pub system_nanos: u64,
    /// Periods of the CPU quota: all of them, those in which it was used up, and for how long.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_nanos: u64,
    /// Bytes, as are the next three.
    pub cache: u64,
    pub mapped_file: u64,
    pub kernel: u64,
    pub max_memory: u64,
    /// How often the memory limit was hit.
    pub limit_hits: u64,
    pub oom_kills: u64,
    /// Processes and threads.
    pub tasks: Option<u64>,
    pub max_tasks: Option<u64>,
    /// By `major:minor`.
    pub devices: BTreeMap<String, DeviceIo>,
    /// By the size of the pages, as the names of the files have it: "2MB".
    pub huge_pages: BTreeMap<String, HugePages>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Bytes in use, and the most that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    pub current: u64,
    pub max: u64,
}

impl Hierarchies {
    /// Reads what `usage` leaves out. What cannot be read is 0 or absent, without an error: `usage`
    /// has already failed if the cgroup is gone.
    pub fn details(&self, path: &str) -> Details {
        let common = Details {
            tasks: number(&self.file("pids", path, "pids.current")),
            max_tasks: limit(&self.file("pids", path, "pids.max")),
            huge_pages: self.huge_pages(path),
            ..Details::default()
        };
        match self.is_v2 {
            true => self.details_v2(path, common),
            false => self.details_v1(path, common),
        }
    }

    fn details_v2(&self, path: &str, common: Details) -> Details {
        let text = |file| text(self.file("", path, file));
        let cpu = text("cpu.stat");
        let memory = text("memory.stat");
        let events = text("memory.events");
        Details {
            user_nanos: count(&cpu, "user_usec") * 1000,
            system_nanos: count(&cpu, "system_usec") * 1000,
            periods: count(&cpu, "nr_periods"),
            throttled_periods: count(&cpu, "nr_throttled"),
            throttled_nanos: count(&cpu, "throttled_usec") * 1000,
            cache: count(&memory, "file"),
            mapped_file: count(&memory, "file_mapped"),
            // Linux 5.18 was the first to write the sum.
            kernel: field(&memory, "kernel")
                .unwrap_or_else(|| count(&memory, "slab") + count(&memory, "kernel_stack")),
            // Since Linux 5.19.
            max_memory: number(&self.file("", path, "memory.peak")).unwrap_or(0),
            limit_hits: count(&events, "max"),
            oom_kills: count(&events, "oom_kill"),
            devices: parse_io_stat(&text("io.stat")),
            ..common
        }
    }

    fn details_v1(&self, path: &str, common: Details) -> Details {
        let text = |controller, file| text(self.file(controller, path, file));
        let number = |controller, file| number(&self.file(controller, path, file)).unwrap_or(0);
        let cpu = text("cpu", "cpu.stat");
        let memory = text("memory", "memory.stat");
        Details {
            user_nanos: number("cpuacct", "cpuacct.usage_user"),
            system_nanos: number("cpuacct", "cpuacct.usage_sys"),
            periods: count(&cpu, "nr_periods"),
            throttled_periods: count(&cpu, "nr_throttled"),
            throttled_nanos: count(&cpu, "throttled_time"),
            cache: count(&memory, "total_cache"),
            mapped_file: count(&memory, "total_mapped_file"),
            kernel: number("memory", "memory.kmem.usage_in_bytes"),
            max_memory: number("memory", "memory.max_usage_in_bytes"),
            limit_hits: number("memory", "memory.failcnt"),
            oom_kills: count(&text("memory", "memory.oom_control"), "oom_kill"),
            devices: parse_blkio(
                &text("blkio", "blkio.throttle.io_service_bytes_recursive"),
                &text("blkio", "blkio.throttle.io_serviced_recursive"),
            ),
            ..common
        }
    }

    /// memory.stat as it is, for whoever shows all of it.
    pub fn memory_stat(&self, path: &str) -> serde_json::Map<String, serde_json::Value> {
        let text = text(self.file("memory", path, "memory.stat"));
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse::<u64>().ok()?.into())))
            .collect()
    }

    /// The time of each CPU, which v2 does not count.
    pub fn cpu_nanos_each(&self, path: &str) -> Vec<u64> {
        if self.is_v2 {
            return Vec::new();
        }
        let text = text(self.file("cpuacct", path, "cpuacct.usage_percpu"));
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    fn file(&self, controller: &str, path: &str, file: &str) -> PathBuf {
        self.directory(controller, path).join(file)
    }

    fn huge_pages(&self, path: &str) -> BTreeMap<String, HugePages> {
        let directory = self.directory("hugetlb", path);
        let current = self.name(".current", ".usage_in_bytes");
        // v2 does not remember the most that was in use.
        let max = self.name(".current", ".max_usage_in_bytes");
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(size) = name.to_str().and_then(|name| page_size(name, current)) else {
                continue;
            };
            let read =
                |end: &str| number(&directory.join(format!("hugetlb.{size}{end}"))).unwrap_or(0);
            // On v2 both are read from the same file.
            found.insert(size.to_owned(), HugePages { current: read(current), max: read(max) });
        }
        found
    }
}

/// `2MB` of `hugetlb.2MB.current`, and nothing of `hugetlb.2MB.rsvd.current`.
fn page_size<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    let size = name.strip_prefix("hugetlb.")?.strip_suffix(end)?;
    (!size.contains('.')).then_some(size)
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn count(text: &str, name: &str) -> u64 {
    field(text, name).unwrap_or(0)
}

/// io.stat of v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn parse_io_stat(text: &str) -> BTreeMap<String, DeviceIo> {
    let mut devices = BTreeMap::new();
    for line in text.lines() {
        let Some((device, counters)) = line.split_once(' ') else { continue };
        let mut io = DeviceIo::default();
        // By name, since newer kernels write more of them.
        for (name, value) in counters.split(' ').filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        devices.insert(device.to_owned(), io);
    }
    devices
}

/// blkio of v1: lines as `8:0 Read 1`, in one file for bytes and in another for operations.
fn parse_blkio(bytes: &str, operations: &str) -> BTreeMap<String, DeviceIo> {
    let mut devices = BTreeMap::<String, DeviceIo>::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            // The last line, a total, has two words.
            let [device, operation, value] = line.split(' ').collect::<Vec<_>>()[..] else {
                continue;
            };
            let Ok(value) = value.parse::<u64>() else { continue };
            let io = devices.entry(device.to_owned()).or_default();
            match (operation, is_bytes) {
                ("Read", true) => io.read_bytes = value,
                ("Write", true) => io.written_bytes = value,
                ("Read", false) => io.reads = value,
                ("Write", false) => io.writes = value,
                _ => {}
            }
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_the_same_of_a_disk() {
        let both = DeviceIo { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(
            parse_io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n"),
            BTreeMap::from([("8:0".into(), both), ("8:16".into(), DeviceIo::default())])
        );
        let v1 = parse_blkio(
            "8:0 Read 1\n8:0 Write 2\n8:0 Sync 9\n8:0 Total 3\nTotal 3\n",
            "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
        );
        assert_eq!(v1, BTreeMap::from([("8:0".into(), both)]));
    }
}
