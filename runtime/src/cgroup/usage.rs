//! What a cgroup uses: the counters of every look.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags, openat};

use super::{Host, ROOT};
use crate::clock::Rising;

/// Rates are over at least so long: shorter ones are noise.
const MIN_SAMPLE: Duration = Duration::from_millis(100);

/// What a cgroup uses. What the kernel does not count is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub cpu_nanos: u64,
    /// Bytes, as are the next four.
    pub memory: u64,
    /// Without the file pages that the kernel would drop first.
    pub working_set: u64,
    pub rss: u64,
    pub swap: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Of swap alone.
    pub swap_limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Time that tasks lost to others (psi.rst): some of them, or all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
    pub total_micros: u64,
}

/// Turns looks into rates.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    cpu: Option<(Instant, u64)>,
    rate: Option<u64>,
    clock: Rising,
}

impl Sampler {
    /// When the look was, in nanoseconds since the epoch: later than the one before.
    pub(crate) fn at(&mut self) -> i64 {
        self.clock.next()
    }

    /// Nanoseconds of CPU time per second, from the second look on.
    pub(crate) fn rate(&mut self, cpu_nanos: u64) -> Option<u64> {
        let taken = Instant::now();
        match self.cpu {
            Some((earlier, cpu)) if taken - earlier >= MIN_SAMPLE => {
                let used = u128::from(cpu_nanos.saturating_sub(cpu));
                let rate = used * 1_000_000_000 / (taken - earlier).as_nanos().max(1);
                self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
                self.cpu = Some((taken, cpu_nanos));
            }
            Some(_) => {}
            None => self.cpu = Some((taken, cpu_nanos)),
        }
        self.rate
    }
}

impl Usage {
    /// That of several cgroups together, of which no one limit and no one pressure is known.
    pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            cpu_nanos: sum.cpu_nanos + one.cpu_nanos,
            memory: sum.memory + one.memory,
            working_set: sum.working_set + one.working_set,
            rss: sum.rss + one.rss,
            swap: sum.swap.into_iter().chain(one.swap).reduce(|a, b| a + b),
            page_faults: sum.page_faults + one.page_faults,
            major_page_faults: sum.major_page_faults + one.major_page_faults,
            ..Self::default()
        })
    }
}

impl Host {
    pub(super) fn directory(&self, controller: &str, path: &str) -> PathBuf {
        match self.is_v2 {
            true => Path::new(ROOT).join(path),
            false => Path::new(ROOT).join(controller).join(path),
        }
    }

    /// Reads the counters of `path`. Some files, no processes.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub(crate) fn usage(&self, path: &str) -> io::Result<Usage> {
        let memory = Files::of(&self.directory("memory", path))?;
        let cpu = (!self.is_v2).then(|| Files::of(&self.directory("cpuacct", path))).transpose()?;
        let names: [&str; 4] = match self.is_v2 {
            true => ["inactive_file", "anon", "pgfault", "pgmajfault"],
            false => ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"],
        };
        let stat = memory.text("memory.stat")?;
        let [inactive, rss, page_faults, major_page_faults] = names.map(|name| field(&stat, name).unwrap_or(0));
        let used = whole(&memory.text(self.name("memory.current", "memory.usage_in_bytes"))?).unwrap_or(0);
        let (memory_limit, swap_limit) = match self.is_v2 {
            true => (memory.limit("memory.max"), memory.limit("memory.swap.max")),
            // What holds, whether it is its own or that of a cgroup above; the second one is of memory and swap together.
            false => {
                let [memory, both] = ["hierarchical_memory_limit", "hierarchical_memsw_limit"]
                    .map(|name| field(&stat, name).filter(|limit| is_limit(*limit)));
                (memory, both.map(|both| both.saturating_sub(memory.unwrap_or(0))))
            }
        };
        // On hybrid hosts it is in the other tree.
        let unified = self.unified.as_ref().filter(|_| !self.is_v2).and_then(|root| Files::of(&root.join(path)).ok());
        let pressure = |name| {
            let files = if self.is_v2 { &memory } else { unified.as_ref()? };
            parse_pressure(&files.text(name).ok()?)
        };
        Ok(Usage {
            cpu_nanos: match &cpu {
                None => field(&memory.text("cpu.stat")?, "usage_usec").unwrap_or(0) * 1000,
                Some(cpu) => whole(&cpu.text("cpuacct.usage")?).unwrap_or(0),
            },
            memory: used,
            working_set: used.saturating_sub(inactive),
            rss,
            swap: match self.is_v2 {
                true => memory.text("memory.swap.current").ok().and_then(|text| whole(&text)),
                false => field(&stat, "total_swap"),
            },
            memory_limit,
            swap_limit,
            page_faults,
            major_page_faults,
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        })
    }

    pub(super) fn name(&self, v2: &'static str, v1: &'static str) -> &'static str {
        if self.is_v2 { v2 } else { v1 }
    }

    /// Ids of the processes in the cgroup `path`, and of execs below it.
    pub(crate) fn processes(&self, path: &str) -> Vec<u32> {
        let directory = match self.is_v2 {
            true => Path::new(ROOT).join(path),
            false => self.directory("memory", path),
        };
        let mut found = Vec::new();
        collect_processes(&directory, &mut found);
        found
    }
}

/// Files of one cgroup: the way to it is walked once.
struct Files(OwnedFd);

impl Files {
    fn of(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    fn text(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let (mut text, mut buffer) = (String::new(), [0; 8192]);
        loop {
            let read = rustix::io::read(&file, &mut buffer)?;
            text.push_str(str::from_utf8(&buffer[..read]).map_err(|_| io::ErrorKind::InvalidData)?);
            // The kernel gives such a file as a whole.
            if read < buffer.len() {
                break;
            }
        }
        Ok(text)
    }

    fn limit(&self, name: &str) -> Option<u64> {
        self.text(name).ok().and_then(|text| limited(&text))
    }
}

fn collect_processes(directory: &Path, found: &mut Vec<u32>) {
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(pids.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

fn whole(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

pub(super) fn number(path: &Path) -> Option<u64> {
    whole(&fs::read_to_string(path).ok()?)
}

pub(super) fn limit(path: &Path) -> Option<u64> {
    limited(&fs::read_to_string(path).ok()?)
}

/// v1 writes "no limit" as a number near the largest one, v2 as "max".
fn limited(text: &str) -> Option<u64> {
    whole(text).filter(|limit| is_limit(*limit))
}

fn is_limit(number: u64) -> bool {
    number < 1 << 62
}

/// The number after `name` in a file of such lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| -> Option<Stall> {
        let mut words = text.lines().find_map(|line| line.strip_prefix(kind))?.split_whitespace();
        let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(Stall {
            averages: [value("avg10")?.parse().ok()?, value("avg60")?.parse().ok()?, value("avg300")?.parse().ok()?],
            total_micros: value("total")?.parse().ok()?,
        })
    };
    // Before Linux 5.13 a cpu.pressure has no second line.
    Some(Pressure { some: stall("some ")?, full: stall("full ").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        let pressure = parse_pressure(
            "some avg10=0.13 avg60=0.11 avg300=1.79 total=5202235132\nfull avg10=0.00 avg60=0.00 avg300=0.50 total=7\n",
        )
        .unwrap();
        assert_eq!(pressure.some, Stall { averages: [0.13, 0.11, 1.79], total_micros: 5_202_235_132 });
        assert_eq!(pressure.full, Stall { averages: [0.0, 0.0, 0.5], total_micros: 7 });
        let old = parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        assert_eq!((old.some.total_micros, old.full.total_micros), (1, 0));
        assert_eq!(parse_pressure(""), None);

        assert_eq!(field("rss 5\nrss_huge 7\ntotal_rss 9\n", "rss"), Some(5));
    }

    #[test]
    fn a_rate_needs_two_looks() {
        let mut sampler = Sampler::default();
        assert_eq!(sampler.rate(1000), None);
        sampler.cpu = Some((Instant::now().checked_sub(Duration::from_secs(2)).unwrap(), 1000));
        let rate = sampler.rate(1000 + 1_000_000_000).unwrap();
        assert!((490_000_000..=500_000_000).contains(&rate), "{rate}");
        assert_eq!(sampler.rate(u64::MAX), Some(rate), "too early for another");
    }
}
