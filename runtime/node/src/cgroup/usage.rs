//! What a cgroup uses: the counters that every sample reads.

use std::io;

use super::{
    files::{Files, field, is_limit, parse},
    hierarchies::Hierarchies,
};

/// What a cgroup uses. What the kernel does not count is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_nanos: u64,
    /// In bytes, as all that follows up to the limits.
    pub memory: u64,
    /// Without the file pages that the kernel would drop first. The kubelet evicts by this number.
    pub working_set: u64,
    pub rss: u64,
    pub swap: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Of swap alone, on v1 too.
    pub swap_limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Time in which tasks waited for a resource (psi.rst): some of them, or all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
    pub total_micros: u64,
}

impl Usage {
    /// The usage of several cgroups together. They have no common limit, and pressure cannot be
    /// added up: tasks of several cgroups wait at the same time.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
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

/// The fields of memory.stat. Those of v1 with "total_" include the cgroups below, as all do on v2.
struct MemoryFields {
    inactive_file: &'static str,
    rss: &'static str,
    page_faults: &'static str,
    major_page_faults: &'static str,
}

const FIELDS_V1: MemoryFields = MemoryFields {
    inactive_file: "total_inactive_file",
    rss: "total_rss",
    page_faults: "total_pgfault",
    major_page_faults: "total_pgmajfault",
};
const FIELDS_V2: MemoryFields = MemoryFields {
    inactive_file: "inactive_file",
    rss: "anon",
    page_faults: "pgfault",
    major_page_faults: "pgmajfault",
};

impl Hierarchies {
    /// Reads the counters of the cgroup `path`: some files, and nothing about its processes.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn usage(&self, path: &str) -> io::Result<Usage> {
        let files = Files::open(&self.directory("memory", path))?;
        let fields = if self.is_v2 { FIELDS_V2 } else { FIELDS_V1 };
        // The first file that is read: if it is not there, the cgroup is gone.
        let stat = files.text("memory.stat")?;
        let stat_field = |name| field(&stat, name).unwrap_or(0);
        let memory = files.text(self.name("memory.current", "memory.usage_in_bytes"))?;
        let memory = parse(&memory).unwrap_or(0);
        let (memory_limit, swap_limit) = match self.is_v2 {
            true => (files.limit("memory.max"), files.limit("memory.swap.max")),
            false => limits_v1(&stat),
        };
        // A hybrid host counts pressure in its v2 tree, and v1 alone counts none.
        let unified = match (&self.unified, self.is_v2) {
            (Some(root), false) => Files::open(&root.join(path)).ok(),
            _ => None,
        };
        // There are no such files in a kernel without CONFIG_PSI, or started with psi=0.
        let pressure = |name| {
            let files = if self.is_v2 { &files } else { unified.as_ref()? };
            parse_pressure(&files.text(name).ok()?)
        };
        Ok(Usage {
            cpu_nanos: self.cpu_nanos(path, &files)?,
            memory,
            // As cAdvisor computes it. The two counters are not read at the same instant, so the
            // difference could be negative.
            working_set: memory.saturating_sub(stat_field(fields.inactive_file)),
            rss: stat_field(fields.rss),
            swap: match self.is_v2 {
                // Without swap accounting there is no such file.
                true => files.text("memory.swap.current").ok().and_then(|text| parse(&text)),
                false => field(&stat, "total_swap"),
            },
            memory_limit,
            swap_limit,
            page_faults: stat_field(fields.page_faults),
            major_page_faults: stat_field(fields.major_page_faults),
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        })
    }

    fn cpu_nanos(&self, path: &str, files: &Files) -> io::Result<u64> {
        if self.is_v2 {
            return Ok(field(&files.text("cpu.stat")?, "usage_usec").unwrap_or(0) * 1000);
        }
        let files = Files::open(&self.directory("cpuacct", path))?;
        Ok(parse(&files.text("cpuacct.usage")?).unwrap_or(0))
    }
}

/// The limits of memory and of swap that are in force, whether of the cgroup itself or of one above
/// it. v1 limits memory and swap together.
fn limits_v1(stat: &str) -> (Option<u64>, Option<u64>) {
    let limit = |name| field(stat, name).filter(|limit| is_limit(*limit));
    let memory = limit("hierarchical_memory_limit");
    let both = limit("hierarchical_memsw_limit");
    (memory, both.map(|both| both.saturating_sub(memory.unwrap_or(0))))
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    // Before Linux 5.13, cpu.pressure has no second line.
    Some(Pressure {
        some: parse_stall(text, "some ")?,
        full: parse_stall(text, "full ").unwrap_or_default(),
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn parse_stall(text: &str, kind: &str) -> Option<Stall> {
    let mut words = text.lines().find_map(|line| line.strip_prefix(kind))?.split_whitespace();
    let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
    Some(Stall {
        averages: [
            value("avg10")?.parse().ok()?,
            value("avg60")?.parse().ok()?,
            value("avg300")?.parse().ok()?,
        ],
        total_micros: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let pressure = parse_pressure(
            "some avg10=0.13 avg60=0.11 avg300=1.79 total=5202235132\n\
             full avg10=0.00 avg60=0.00 avg300=0.50 total=7\n",
        )
        .unwrap();
        assert_eq!(
            pressure.some,
            Stall { averages: [0.13, 0.11, 1.79], total_micros: 5_202_235_132 }
        );
        assert_eq!(pressure.full, Stall { averages: [0.0, 0.0, 0.5], total_micros: 7 });
        let old = parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        assert_eq!((old.some.total_micros, old.full.total_micros), (1, 0));
        assert_eq!(parse_pressure(""), None);
    }
}
