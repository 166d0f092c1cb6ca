//! What processes and the kernel use, read from /proc.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use berth_tests::has_unified_cgroups;
use nix::{
    time::clock_getcpuclockid,
    unistd::{Pid, SysconfVar, sysconf},
};

/// The sum of a process' mappings in KiB, by the name of the field in /proc/PID/smaps_rollup.
pub(crate) fn memory(pid: u32, field: &str) -> f64 {
    first_numbers(&format!("/proc/{pid}/smaps_rollup"), &[field])
}

/// Memory in KiB that the kernel has for itself and cannot give back: of objects, stacks, page
/// tables, and of counters for each processor, as cgroups have them.
pub(crate) fn kernel_memory() -> f64 {
    first_numbers("/proc/meminfo", &["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"])
}

/// The peak of a process' resident set in KiB, since `reset_peak`.
pub(crate) fn peak(pid: u32) -> f64 {
    first_numbers(&format!("/proc/{pid}/status"), &["VmHWM:"])
}

pub(crate) fn reset_peak(pid: u32) {
    // proc_pid_clear_refs(5): 5 resets the peak of the resident set.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn first_numbers(path: &str, fields: &[&str]) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let number = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok();
    let wanted = |line: &&str| fields.iter().any(|field| line.starts_with(field));
    text.lines().filter(wanted).filter_map(number).sum()
}

/// CPU time in milliseconds of all threads that a process has and had, to nanoseconds, see
/// clock_getcpuclockid(3).
pub(crate) fn precise_cpu_ms(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).and_then(|clock| clock.now());
    clock.map_or(f64::NAN, |time| Duration::from(time).as_secs_f64() * 1000.0)
}

/// Puts a process and all that it will start into a cgroup of its own below `parent`, unless they
/// leave it for another one there.
pub(crate) fn join_cgroup(parent: &str, name: &str, pid: u32) -> Result<()> {
    let path = cpu_cgroup(parent).join(name);
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    fs::write(path.join("cgroup.procs"), pid.to_string()).context("move a daemon into it")
}

/// CPU time in milliseconds of all that is and was in a cgroup, and in those below it: of
/// processes that are too short for the ticks of their parents' counters, too.
pub(crate) fn cgroup_cpu_ms(parent: &str) -> f64 {
    let path = cpu_cgroup(parent);
    if has_unified_cgroups() {
        return first_numbers(&path.join("cpu.stat").display().to_string(), &["usage_usec"]) / 1e3;
    }
    let nanos = fs::read_to_string(path.join("cpuacct.usage")).unwrap_or_default();
    nanos.trim().parse().map_or(f64::NAN, |nanos: f64| nanos / 1e6)
}

fn cpu_cgroup(parent: &str) -> PathBuf {
    let hierarchy = if has_unified_cgroups() { "" } else { "cpuacct" };
    Path::new("/sys/fs/cgroup").join(hierarchy).join(parent)
}

/// Milliseconds for which the machine's processors were at work.
pub(crate) fn machine_cpu_ms() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, see proc_stat(5).
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> =
        first.split_ascii_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum::<f64>();
    busy * tick_ms()
}

fn tick_ms() -> f64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    1000.0 / per_second as f64
}
