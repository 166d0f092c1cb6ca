//! What a cgroup counts besides its usage: only metrics tell it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use super::{
    Host,
    usage::{field, limit, number},
};

/// What only metrics tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub user_nanos: u64,
    pub system_nanos: u64,
    /// Of CFS bandwidth: all periods, those with throttling, and for how long it was.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_nanos: u64,
    /// Bytes, as are the next three.
    pub cache: u64,
    pub mapped_file: u64,
    pub kernel: u64,
    pub max_memory: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    pub oom_kills: u64,
    /// Processes and threads.
    pub tasks: Option<u64>,
    pub max_tasks: Option<u64>,
    /// By "major:minor".
    pub devices: BTreeMap<String, DeviceIo>,
    /// In use and at most, in bytes, by the size of the pages as the files say it: "2MB".
    pub huge_pages: BTreeMap<String, (u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceIo {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Host {
    /// Reads what `usage` leaves out. What cannot be read is 0 or absent: `usage` has said whether the cgroup is there.
    pub(crate) fn details(&self, path: &str) -> Details {
        let at = |controller: &str, file: &str| self.directory(controller, path).join(file);
        let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (text(at("cpu", "cpu.stat")), text(at("memory", "memory.stat")));
        let of = |text: &str, name| field(text, name).unwrap_or(0);
        let common = Details {
            periods: of(&cpu, "nr_periods"),
            throttled_periods: of(&cpu, "nr_throttled"),
            tasks: number(&at("pids", "pids.current")),
            max_tasks: limit(&at("pids", "pids.max")),
            huge_pages: self.huge_pages(path),
            ..Details::default()
        };
        match self.is_v2 {
            true => {
                let events = text(at("", "memory.events"));
                Details {
                    user_nanos: of(&cpu, "user_usec") * 1000,
                    system_nanos: of(&cpu, "system_usec") * 1000,
                    throttled_nanos: of(&cpu, "throttled_usec") * 1000,
                    cache: of(&memory, "file"),
                    mapped_file: of(&memory, "file_mapped"),
                    // Before Linux 5.18 there is no sum.
                    kernel: field(&memory, "kernel")
                        .unwrap_or_else(|| of(&memory, "slab") + of(&memory, "kernel_stack")),
                    max_memory: number(&at("", "memory.peak")).unwrap_or(0),
                    limit_hits: of(&events, "max"),
                    oom_kills: of(&events, "oom_kill"),
                    devices: io_stat(&text(at("", "io.stat"))),
                    ..common
                }
            }
            false => Details {
                user_nanos: number(&at("cpuacct", "cpuacct.usage_user")).unwrap_or(0),
                system_nanos: number(&at("cpuacct", "cpuacct.usage_sys")).unwrap_or(0),
                throttled_nanos: of(&cpu, "throttled_time"),
                cache: of(&memory, "total_cache"),
                mapped_file: of(&memory, "total_mapped_file"),
                kernel: number(&at("memory", "memory.kmem.usage_in_bytes")).unwrap_or(0),
                max_memory: number(&at("memory", "memory.max_usage_in_bytes")).unwrap_or(0),
                limit_hits: number(&at("memory", "memory.failcnt")).unwrap_or(0),
                oom_kills: of(&text(at("memory", "memory.oom_control")), "oom_kill"),
                devices: blkio(
                    &text(at("blkio", "blkio.throttle.io_service_bytes_recursive")),
                    &text(at("blkio", "blkio.throttle.io_serviced_recursive")),
                ),
                ..common
            },
        }
    }

    fn huge_pages(&self, path: &str) -> BTreeMap<String, (u64, u64)> {
        let directory = self.directory("hugetlb", path);
        // v2 does not remember the most that was in use.
        let (current, most) = (self.name(".current", ".usage_in_bytes"), self.name(".current", ".max_usage_in_bytes"));
        let names = fs::read_dir(&directory).into_iter().flatten().flatten();
        let size = |name: &str| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(current)?;
            (!size.contains('.')).then(|| size.to_owned())
        };
        names
            .filter_map(|entry| size(entry.file_name().to_str()?))
            .map(|size| {
                let read = |end: &str| number(&directory.join(format!("hugetlb.{size}{end}"))).unwrap_or(0);
                let used = (read(current), read(most));
                (size, used)
            })
            .collect()
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` of v2.
fn io_stat(text: &str) -> BTreeMap<String, DeviceIo> {
    let line = |line: &str| {
        let (device, counters) = line.split_once(' ')?;
        let value = |name: &str| {
            let word = counters.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let io = DeviceIo {
            read_bytes: value("rbytes"),
            written_bytes: value("wbytes"),
            reads: value("rios"),
            writes: value("wios"),
        };
        Some((device.to_owned(), io))
    };
    text.lines().filter_map(line).collect()
}

/// `8:0 Read 1` of v1, in one file for bytes and one for operations.
fn blkio(bytes: &str, operations: &str) -> BTreeMap<String, DeviceIo> {
    let mut devices = BTreeMap::<String, DeviceIo>::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(verb), Some(Ok(value))) =
                (words.next(), words.next(), words.next().map(str::parse::<u64>))
            else {
                continue;
            };
            let io = devices.entry(device.to_owned()).or_default();
            match (verb, is_bytes) {
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
            io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n"),
            BTreeMap::from([("8:0".into(), both), ("8:16".into(), DeviceIo::default())])
        );
        let v1 =
            blkio("8:0 Read 1\n8:0 Write 2\n8:0 Sync 9\n8:0 Total 3\nTotal 3\n", "8:0 Read 3\n8:0 Write 4\nTotal 7\n");
        assert_eq!(v1, BTreeMap::from([("8:0".into(), both)]));
    }
}
