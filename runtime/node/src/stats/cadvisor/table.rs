//! The 56 metrics, in the order of their names.
//!
//! CRI has whole numbers only, so seconds are whole (KEP 2371).

use std::fs;

use super::facts::{Disk, Facts, Metric, Values, counter, gauge};
use crate::{
    cgroup::{Details, DeviceIo, HugePages, Pressure, Resources},
    stats::network::Interface,
};

const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

const BLOCK_IO: &[&str] = &["device", "major", "minor", "operation"];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGE_SIZE: &[&str] = &["pagesize"];
const PAGE_FAULT: &[&str] = &["failure_type", "scope"];

pub static CADVISOR: [Metric; 56] = [
    counter("container_blkio_device_usage_total", "Bytes read from and written to block devices")
        .labelled(BLOCK_IO)
        .values(block_io),
    counter("container_cpu_cfs_periods_total", "Elapsed periods of the CPU quota")
        .values(|f| detail(f, |d| d.periods)),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods of the CPU quota in which it was used up",
    )
    .values(|f| detail(f, |d| d.throttled_periods)),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Seconds spent waiting because the CPU quota was used up",
    )
    .values(|f| detail(f, |d| d.throttled_nanos / NANOS)),
    counter("container_cpu_system_seconds_total", "CPU seconds in the kernel")
        .values(|f| detail(f, |d| d.system_nanos / NANOS)),
    counter("container_cpu_usage_seconds_total", "CPU seconds")
        .labelled(&["cpu"])
        .values(|f| labelled("total", f.usage.cpu_nanos / NANOS)),
    counter("container_cpu_user_seconds_total", "CPU seconds outside the kernel")
        .values(|f| detail(f, |d| d.user_nanos / NANOS)),
    gauge("container_file_descriptors", "Open file descriptors")
        .values(|f| one(f.processes.descriptors)),
    gauge("container_fs_inodes_free", "Free inodes of the filesystem with the writable layer")
        .labelled(DEVICE)
        .values(|f| disk(f, |disk| disk.filesystem.free_inodes)),
    gauge("container_fs_inodes_total", "Inodes of the filesystem with the writable layer")
        .labelled(DEVICE)
        .values(|f| disk(f, |disk| disk.filesystem.inodes)),
    gauge("container_fs_limit_bytes", "Size of the filesystem with the writable layer")
        .labelled(DEVICE)
        .values(|f| disk(f, |disk| disk.filesystem.bytes)),
    counter("container_fs_reads_bytes_total", "Bytes read from block devices")
        .labelled(DEVICE)
        .values(|f| devices(f, |io| io.read_bytes)),
    counter("container_fs_reads_total", "Reads from block devices")
        .labelled(DEVICE)
        .values(|f| devices(f, |io| io.reads)),
    gauge(
        "container_fs_usage_bytes",
        "Bytes of the writable layer and of the volumes that the image declares",
    )
    .labelled(DEVICE)
    .values(|f| disk(f, |disk| disk.used.bytes)),
    counter("container_fs_writes_bytes_total", "Bytes written to block devices")
        .labelled(DEVICE)
        .values(|f| devices(f, |io| io.written_bytes)),
    counter("container_fs_writes_total", "Writes to block devices")
        .labelled(DEVICE)
        .values(|f| devices(f, |io| io.writes)),
    gauge("container_hugetlb_max_usage_bytes", "Most bytes of huge pages that were in use")
        .labelled(PAGE_SIZE)
        .values(|f| huge_pages(f, |used| used.max)),
    gauge("container_hugetlb_usage_bytes", "Bytes of huge pages in use")
        .labelled(PAGE_SIZE)
        .values(|f| huge_pages(f, |used| used.current)),
    gauge("container_last_seen", "When it was sampled, in seconds since the epoch")
        .values(|f| optional(seconds(f.at))),
    gauge("container_memory_cache", "Bytes of page cache").values(|f| detail(f, |d| d.cache)),
    counter("container_memory_failcnt", "How often the memory limit was hit")
        .values(|f| detail(f, |d| d.limit_hits)),
    counter("container_memory_failures_total", "Page faults")
        .labelled(PAGE_FAULT)
        .values(page_faults),
    gauge("container_memory_kernel_usage", "Bytes that the kernel holds")
        .values(|f| detail(f, |d| d.kernel)),
    gauge("container_memory_mapped_file", "Bytes of mapped files")
        .values(|f| detail(f, |d| d.mapped_file)),
    gauge("container_memory_max_usage_bytes", "Most bytes of memory that were in use")
        .values(|f| detail(f, |d| d.max_memory)),
    gauge("container_memory_rss", "Bytes of anonymous memory").values(|f| one(f.usage.rss)),
    gauge("container_memory_swap", "Bytes of swap").values(|f| one(f.usage.swap.unwrap_or(0))),
    gauge("container_memory_usage_bytes", "Bytes of memory in use, page cache included")
        .values(|f| one(f.usage.memory)),
    gauge(
        "container_memory_working_set_bytes",
        "Bytes of memory in use, without inactive page cache",
    )
    .values(|f| one(f.usage.working_set)),
    counter("container_network_receive_bytes_total", "Bytes received")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.received.bytes)),
    counter("container_network_receive_errors_total", "Errors while receiving")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.received.errors)),
    counter("container_network_receive_packets_dropped_total", "Packets dropped while receiving")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.received.dropped)),
    counter("container_network_receive_packets_total", "Packets received")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.received.packets)),
    counter("container_network_transmit_bytes_total", "Bytes sent")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.sent.bytes)),
    counter("container_network_transmit_errors_total", "Errors while sending")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.sent.errors)),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped while sending")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.sent.dropped)),
    counter("container_network_transmit_packets_total", "Packets sent")
        .labelled(INTERFACE)
        .values(|f| traffic(f, |i| i.sent.packets)),
    counter(
        "container_oom_events_total",
        "Processes that the kernel killed because memory had run out",
    )
    .values(|f| detail(f, |d| d.oom_kills)),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Seconds in which all tasks waited for CPU",
    )
    .values(|f| stalled(f.usage.cpu_pressure)),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Seconds in which a task waited for CPU",
    )
    .values(|f| waiting(f.usage.cpu_pressure)),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Seconds in which all tasks waited for I/O",
    )
    .values(|f| stalled(f.usage.io_pressure)),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Seconds in which a task waited for I/O",
    )
    .values(|f| waiting(f.usage.io_pressure)),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Seconds in which all tasks waited for memory",
    )
    .values(|f| stalled(f.usage.memory_pressure)),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Seconds in which a task waited for memory",
    )
    .values(|f| waiting(f.usage.memory_pressure)),
    gauge("container_processes", "Processes").values(|f| one(f.processes.count)),
    gauge("container_sockets", "Open sockets").values(|f| one(f.processes.sockets)),
    gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds")
        .values(|f| limit(f, |r| r.cpu_period)),
    gauge("container_spec_cpu_quota", "Microseconds of CPU in each period; 0 is no quota")
        .values(|f| limit(f, |r| r.cpu_quota)),
    gauge("container_spec_cpu_shares", "CPU shares").values(|f| limit(f, |r| r.cpu_shares)),
    gauge("container_spec_memory_limit_bytes", "Memory limit; 0 is none")
        .values(|f| limit(f, |r| r.memory_limit)),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is protected from reclaim (memory.low)",
    )
    .values(|f| limit(f, reservation)),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0 is none")
        .values(|f| limit(f, |r| r.memory_swap_limit)),
    gauge("container_start_time_seconds", "When it was started, in seconds since the epoch")
        .values(|f| optional(f.started_at.and_then(seconds))),
    gauge("container_threads", "Processes and threads")
        .values(|f| optional(f.details.as_ref().and_then(|d| d.tasks))),
    gauge("container_threads_max", "Limit of processes and threads; 0 is none")
        .values(|f| detail(f, |d| d.max_tasks.unwrap_or(0))),
    gauge("container_ulimits_soft", "Soft limits of the first process")
        .labelled(&["ulimit"])
        .values(soft_limits),
];

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn labelled(label: &str, value: u64) -> Values {
    vec![(vec![label.to_owned()], value)]
}

fn optional(value: Option<u64>) -> Values {
    value.map_or_else(Vec::new, one)
}

fn detail(facts: &Facts<'_>, value: impl Fn(&Details) -> u64) -> Values {
    optional(facts.details.as_ref().map(value))
}

/// Time in which some task waited (psi.rst, "some").
fn waiting(pressure: Option<Pressure>) -> Values {
    optional(pressure.map(|pressure| pressure.some.total_micros / MICROS))
}

/// Time in which all tasks waited at once (psi.rst, "full").
fn stalled(pressure: Option<Pressure>) -> Values {
    optional(pressure.map(|pressure| pressure.full.total_micros / MICROS))
}

fn traffic(facts: &Facts<'_>, value: impl Fn(&Interface) -> u64) -> Values {
    let interfaces = facts.interfaces.iter();
    interfaces.map(|interface| (vec![interface.name.clone()], value(interface))).collect()
}

/// CRI says "no limit" with 0 or -1, cAdvisor with 0.
fn limit(facts: &Facts<'_>, value: impl Fn(&Resources) -> i64) -> Values {
    optional(facts.resources.as_ref().map(|resources| u64::try_from(value(resources)).unwrap_or(0)))
}

fn disk(facts: &Facts<'_>, value: impl Fn(&Disk<'_>) -> u64) -> Values {
    let disk = facts.disk.as_ref();
    disk.map_or_else(Vec::new, |disk| labelled(&disk.filesystem.device, value(disk)))
}

fn devices(facts: &Facts<'_>, value: impl Fn(&DeviceIo) -> u64) -> Values {
    let devices = facts.details.iter().flat_map(|details| &details.devices);
    devices.map(|(numbers, io)| (vec![device_name(numbers)], value(io))).collect()
}

fn block_io(facts: &Facts<'_>) -> Values {
    let mut values = Vec::new();
    for (numbers, io) in facts.details.iter().flat_map(|details| &details.devices) {
        let device = device_name(numbers);
        let (major, minor) = numbers.split_once(':').unwrap_or((numbers, ""));
        for (operation, value) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [&device, major, minor, operation].map(str::to_owned);
            values.push((labels.to_vec(), value));
        }
    }
    values
}

fn huge_pages(facts: &Facts<'_>, value: impl Fn(&HugePages) -> u64) -> Values {
    let sizes = facts.details.iter().flat_map(|details| &details.huge_pages);
    sizes.map(|(size, used)| (vec![size.clone()], value(used))).collect()
}

/// memory.stat counts a cgroup with all that is below it, so both scopes say the same.
fn page_faults(facts: &Facts<'_>) -> Values {
    let mut values = Vec::new();
    let minor = ("pgfault", facts.usage.page_faults);
    let major = ("pgmajfault", facts.usage.major_page_faults);
    for (kind, value) in [minor, major] {
        for scope in ["container", "hierarchy"] {
            values.push((vec![kind.to_owned(), scope.to_owned()], value));
        }
    }
    values
}

/// `None` for a time before the epoch.
fn seconds(nanos: i64) -> Option<u64> {
    u64::try_from(nanos).ok().map(|nanos| nanos / NANOS)
}

/// memory.low of `unified`; CRI has no field for it.
fn reservation(resources: &Resources) -> i64 {
    let low = resources.unified.iter().find(|(name, _)| name == "memory.low");
    low.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

fn soft_limits(facts: &Facts<'_>) -> Values {
    let limit = facts.processes.max_open_files;
    limit.map_or_else(Vec::new, |limit| labelled("max_open_files", limit))
}

/// `/dev/sda` for `8:0`; the numbers themselves if no block device has them, as with btrfs, whose
/// filesystems have numbers without a device.
pub(super) fn device_name(numbers: &str) -> String {
    let text = fs::read_to_string(format!("/sys/dev/block/{numbers}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| numbers.to_owned(), |name| format!("/dev/{name}"))
}
