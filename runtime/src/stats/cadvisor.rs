//! The metrics of pods and containers, with cAdvisor's names and the labels that the kubelet gives them: dashboards and alerts that
//! read /metrics/cadvisor go on working when the kubelet asks the runtime (KEP 2371). CRI has whole numbers only, so seconds are whole.

use std::{fs, path::Path};

use super::{
    PodStats,
    network::Interface,
    processes::{self, Processes},
};
use crate::{
    cgroup::{Details, DeviceIo, Pressure, Resources, Usage},
    container::{Container, Layer, Look, State},
    machine::Machine,
    sandbox::Sandbox,
};

/// Of every metric, before its own.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

#[derive(Debug)]
pub(crate) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    /// Besides those that every metric has.
    own_labels: &'static [&'static str],
    values: fn(&Facts<'_>) -> Values,
}

/// Values of the metric's own labels, and the number.
type Values = Vec<(Vec<String>, u64)>;

/// One line of a metric.
#[derive(Debug)]
pub(crate) struct Value {
    pub metric: &'static Metric,
    /// In the order of `labels`.
    pub labels: Vec<String>,
    pub value: u64,
}

#[derive(Debug)]
pub(crate) struct PodMetrics {
    pub sandbox: String,
    pub values: Vec<Value>,
    /// By container.
    pub containers: Vec<(String, Vec<Value>)>,
}

/// What is known of a container, or of a pod, which has no files and no limits of its own.
struct Facts<'a> {
    at: i64,
    started_at: Option<i64>,
    usage: &'a Usage,
    details: Option<Details>,
    processes: Processes,
    layer: Option<(&'a Layer, Filesystem)>,
    resources: Option<Resources>,
    interfaces: &'a [Interface],
}

/// Where the layer is.
struct Filesystem {
    device: String,
    bytes: u64,
    inodes: u64,
    free_inodes: u64,
}

pub(crate) fn labels(metric: &Metric) -> Vec<String> {
    LABELS.iter().chain(metric.own_labels).map(|label| (*label).to_owned()).collect()
}

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn some(value: Option<u64>) -> Values {
    value.map_or_else(Vec::new, one)
}

fn of(facts: &Facts<'_>, value: impl Fn(&Details) -> u64) -> Values {
    some(facts.details.as_ref().map(value))
}

fn stalled(pressure: Option<Pressure>, all: bool) -> Values {
    some(pressure.map(|pressure| if all { pressure.full } else { pressure.some }.total_micros / MICROS))
}

fn traffic(facts: &Facts<'_>, value: impl Fn(&Interface) -> u64) -> Values {
    facts.interfaces.iter().map(|interface| (vec![interface.name.clone()], value(interface))).collect()
}

fn spec(facts: &Facts<'_>, value: impl Fn(&Resources) -> i64) -> Values {
    // 0 and less: no limit.
    some(facts.resources.as_ref().map(|resources| u64::try_from(value(resources)).unwrap_or(0)))
}

fn disk(facts: &Facts<'_>, value: impl Fn(&Filesystem, &Layer) -> u64) -> Values {
    let line = |(layer, filesystem): &(&Layer, Filesystem)| (vec![filesystem.device.clone()], value(filesystem, layer));
    facts.layer.iter().map(line).collect()
}

fn devices(facts: &Facts<'_>, value: impl Fn(&DeviceIo) -> u64) -> Values {
    let devices = facts.details.iter().flat_map(|details| &details.devices);
    devices.map(|(numbers, io)| (vec![device(numbers)], value(io))).collect()
}

fn blkio(facts: &Facts<'_>) -> Values {
    let mut values = Vec::new();
    for (numbers, io) in facts.details.iter().flat_map(|details| &details.devices) {
        let (major, minor) = numbers.split_once(':').unwrap_or((numbers, ""));
        for (operation, value) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [device(numbers).as_str(), major, minor, operation].map(str::to_owned).to_vec();
            values.push((labels, value));
        }
    }
    values
}

fn huge_pages(facts: &Facts<'_>, value: impl Fn(&(u64, u64)) -> u64) -> Values {
    let sizes = facts.details.iter().flat_map(|details| &details.huge_pages);
    sizes.map(|(size, used)| (vec![size.clone()], value(used))).collect()
}

fn faults(facts: &Facts<'_>) -> Values {
    let mut values = Vec::new();
    for (kind, value) in [("pgfault", facts.usage.page_faults), ("pgmajfault", facts.usage.major_page_faults)] {
        for scope in ["container", "hierarchy"] {
            values.push((vec![kind.to_owned(), scope.to_owned()], value));
        }
    }
    values
}

const fn metric(
    name: &'static str,
    kind: Kind,
    own_labels: &'static [&'static str],
    values: fn(&Facts<'_>) -> Values,
    help: &'static str,
) -> Metric {
    Metric { name, kind, help, own_labels, values }
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGE: &[&str] = &["pagesize"];

#[rustfmt::skip]
pub(crate) static CADVISOR: [Metric; 56] = [
    metric("container_blkio_device_usage_total", Counter, &["device", "major", "minor", "operation"], blkio, "Bytes read from and written to block devices"),
    metric("container_cpu_cfs_periods_total", Counter, &[], |f| of(f, |d| d.periods), "Elapsed periods of the CPU quota"),
    metric("container_cpu_cfs_throttled_periods_total", Counter, &[], |f| of(f, |d| d.throttled_periods), "Periods of the CPU quota in which it was used up"),
    metric("container_cpu_cfs_throttled_seconds_total", Counter, &[], |f| of(f, |d| d.throttled_nanos / NANOS), "Seconds spent waiting because the CPU quota was used up"),
    metric("container_cpu_system_seconds_total", Counter, &[], |f| of(f, |d| d.system_nanos / NANOS), "CPU seconds in the kernel"),
    metric("container_cpu_usage_seconds_total", Counter, &["cpu"], |f| vec![(vec!["total".to_owned()], f.usage.cpu_nanos / NANOS)], "CPU seconds"),
    metric("container_cpu_user_seconds_total", Counter, &[], |f| of(f, |d| d.user_nanos / NANOS), "CPU seconds outside the kernel"),
    metric("container_file_descriptors", Gauge, &[], |f| one(f.processes.descriptors), "Open file descriptors"),
    metric("container_fs_inodes_free", Gauge, DEVICE, |f| disk(f, |at, _| at.free_inodes), "Free inodes of the filesystem with the writable layer"),
    metric("container_fs_inodes_total", Gauge, DEVICE, |f| disk(f, |at, _| at.inodes), "Inodes of the filesystem with the writable layer"),
    metric("container_fs_limit_bytes", Gauge, DEVICE, |f| disk(f, |at, _| at.bytes), "Size of the filesystem with the writable layer"),
    metric("container_fs_reads_bytes_total", Counter, DEVICE, |f| devices(f, |io| io.read_bytes), "Bytes read from block devices"),
    metric("container_fs_reads_total", Counter, DEVICE, |f| devices(f, |io| io.reads), "Reads from block devices"),
    metric("container_fs_usage_bytes", Gauge, DEVICE, |f| disk(f, |_, layer| layer.bytes), "Bytes of the writable layer and of the volumes that the image declares"),
    metric("container_fs_writes_bytes_total", Counter, DEVICE, |f| devices(f, |io| io.written_bytes), "Bytes written to block devices"),
    metric("container_fs_writes_total", Counter, DEVICE, |f| devices(f, |io| io.writes), "Writes to block devices"),
    metric("container_hugetlb_max_usage_bytes", Gauge, PAGE, |f| huge_pages(f, |used| used.1), "Most bytes of huge pages that were in use"),
    metric("container_hugetlb_usage_bytes", Gauge, PAGE, |f| huge_pages(f, |used| used.0), "Bytes of huge pages in use"),
    metric("container_last_seen", Gauge, &[], |f| some(seconds(f.at)), "When it was looked at, in seconds since the epoch"),
    metric("container_memory_cache", Gauge, &[], |f| of(f, |d| d.cache), "Bytes of page cache"),
    metric("container_memory_failcnt", Counter, &[], |f| of(f, |d| d.limit_hits), "How often the memory limit was hit"),
    metric("container_memory_failures_total", Counter, &["failure_type", "scope"], faults, "Page faults"),
    metric("container_memory_kernel_usage", Gauge, &[], |f| of(f, |d| d.kernel), "Bytes that the kernel holds"),
    metric("container_memory_mapped_file", Gauge, &[], |f| of(f, |d| d.mapped_file), "Bytes of mapped files"),
    metric("container_memory_max_usage_bytes", Gauge, &[], |f| of(f, |d| d.max_memory), "Most bytes of memory that were in use"),
    metric("container_memory_rss", Gauge, &[], |f| one(f.usage.rss), "Bytes of anonymous memory"),
    metric("container_memory_swap", Gauge, &[], |f| one(f.usage.swap.unwrap_or(0)), "Bytes of swap"),
    metric("container_memory_usage_bytes", Gauge, &[], |f| one(f.usage.memory), "Bytes of memory in use, page cache included"),
    metric("container_memory_working_set_bytes", Gauge, &[], |f| one(f.usage.working_set), "Bytes of memory in use, without inactive page cache"),
    metric("container_network_receive_bytes_total", Counter, INTERFACE, |f| traffic(f, |i| i.received.bytes), "Bytes received"),
    metric("container_network_receive_errors_total", Counter, INTERFACE, |f| traffic(f, |i| i.received.errors), "Errors while receiving"),
    metric("container_network_receive_packets_dropped_total", Counter, INTERFACE, |f| traffic(f, |i| i.received.dropped), "Packets dropped while receiving"),
    metric("container_network_receive_packets_total", Counter, INTERFACE, |f| traffic(f, |i| i.received.packets), "Packets received"),
    metric("container_network_transmit_bytes_total", Counter, INTERFACE, |f| traffic(f, |i| i.sent.bytes), "Bytes sent"),
    metric("container_network_transmit_errors_total", Counter, INTERFACE, |f| traffic(f, |i| i.sent.errors), "Errors while sending"),
    metric("container_network_transmit_packets_dropped_total", Counter, INTERFACE, |f| traffic(f, |i| i.sent.dropped), "Packets dropped while sending"),
    metric("container_network_transmit_packets_total", Counter, INTERFACE, |f| traffic(f, |i| i.sent.packets), "Packets sent"),
    metric("container_oom_events_total", Counter, &[], |f| of(f, |d| d.oom_kills), "Processes that were killed for want of memory"),
    metric("container_pressure_cpu_stalled_seconds_total", Counter, &[], |f| stalled(f.usage.cpu_pressure, true), "Seconds in which no task ran for want of CPU"),
    metric("container_pressure_cpu_waiting_seconds_total", Counter, &[], |f| stalled(f.usage.cpu_pressure, false), "Seconds in which a task waited for CPU"),
    metric("container_pressure_io_stalled_seconds_total", Counter, &[], |f| stalled(f.usage.io_pressure, true), "Seconds in which all tasks waited for I/O"),
    metric("container_pressure_io_waiting_seconds_total", Counter, &[], |f| stalled(f.usage.io_pressure, false), "Seconds in which a task waited for I/O"),
    metric("container_pressure_memory_stalled_seconds_total", Counter, &[], |f| stalled(f.usage.memory_pressure, true), "Seconds in which all tasks waited for memory"),
    metric("container_pressure_memory_waiting_seconds_total", Counter, &[], |f| stalled(f.usage.memory_pressure, false), "Seconds in which a task waited for memory"),
    metric("container_processes", Gauge, &[], |f| one(f.processes.count), "Processes"),
    metric("container_sockets", Gauge, &[], |f| one(f.processes.sockets), "Open sockets"),
    metric("container_spec_cpu_period", Gauge, &[], |f| spec(f, |r| r.cpu_period), "Period of the CPU quota in microseconds"),
    metric("container_spec_cpu_quota", Gauge, &[], |f| spec(f, |r| r.cpu_quota), "Microseconds of CPU in each period; 0 is no limit"),
    metric("container_spec_cpu_shares", Gauge, &[], |f| spec(f, |r| r.cpu_shares), "CPU shares"),
    metric("container_spec_memory_limit_bytes", Gauge, &[], |f| spec(f, |r| r.memory_limit), "Memory limit; 0 is none"),
    metric("container_spec_memory_reservation_limit_bytes", Gauge, &[], |f| spec(f, reservation), "Memory that is kept from reclaim: memory.low"),
    metric("container_spec_memory_swap_limit_bytes", Gauge, &[], |f| spec(f, |r| r.memory_swap_limit), "Limit of memory and swap together; 0 is none"),
    metric("container_start_time_seconds", Gauge, &[], |f| some(f.started_at.and_then(seconds)), "When it was started, in seconds since the epoch"),
    metric("container_threads", Gauge, &[], |f| some(f.details.as_ref().and_then(|d| d.tasks)), "Processes and threads"),
    metric("container_threads_max", Gauge, &[], |f| of(f, |d| d.max_tasks.unwrap_or(0)), "Processes and threads at most; 0 is no limit"),
    metric("container_ulimits_soft", Gauge, &["ulimit"], |f| limits(&f.processes), "Soft limits of the first process"),
];

fn seconds(nanos: i64) -> Option<u64> {
    u64::try_from(nanos).ok().map(|nanos| nanos / NANOS)
}

fn reservation(resources: &Resources) -> i64 {
    let low = resources.unified.iter().find(|(name, _)| name == "memory.low");
    low.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

fn limits(processes: &Processes) -> Values {
    processes.max_open_files.map(|limit| (vec!["max_open_files".to_owned()], limit)).into_iter().collect()
}

/// All metrics of a pod that was looked at. Blocks.
pub(crate) fn pod_metrics(machine: &Machine, pod: &PodStats) -> PodMetrics {
    let PodStats { sandbox, containers, .. } = pod;
    let facts = Facts {
        at: pod.at,
        started_at: Some(sandbox.meta.created_at),
        usage: &pod.usage,
        details: pod.cgroup.as_deref().map(|cgroup| machine.cgroups.details(cgroup)),
        processes: Processes { count: pod.processes as u64, ..Processes::default() },
        layer: None,
        resources: None,
        interfaces: &pod.interfaces,
    };
    let cgroup = pod.cgroup.as_deref().unwrap_or_default();
    PodMetrics {
        sandbox: sandbox.meta.id.to_string(),
        values: lines(&facts, &base(sandbox, "", cgroup, "", sandbox.meta.id.as_str())),
        containers: containers.iter().map(|look| container_metrics(machine, sandbox, look)).collect(),
    }
}

fn container_metrics(machine: &Machine, sandbox: &Sandbox, (container, stats): &Look) -> (String, Vec<Value>) {
    let meta = &container.meta;
    let first = container.pid().unwrap_or(0);
    let layer = stats.layer.as_ref();
    let facts = Facts {
        at: stats.at,
        started_at: started_at(container),
        usage: &stats.usage,
        details: Some(machine.cgroups.details(&meta.cgroup)),
        processes: processes::look(&machine.cgroups.processes(&meta.cgroup), first),
        layer: layer.and_then(|layer| Some((layer, filesystem(&layer.path)?))),
        resources: Some(container.resources()),
        interfaces: &[],
    };
    let image = match meta.config.user_specified_image.as_str() {
        "" => &meta.config.image,
        given => given,
    };
    let base = base(sandbox, &meta.config.name, &meta.cgroup, image, meta.id.as_str());
    (meta.id.to_string(), lines(&facts, &base))
}

/// Values of `LABELS`.
fn base(sandbox: &Sandbox, container: &str, cgroup: &str, image: &str, name: &str) -> [String; LABELS.len()] {
    let config = &sandbox.meta.config;
    let id = if cgroup.is_empty() { String::new() } else { format!("/{cgroup}") };
    [container, &id, image, name, &config.namespace, &config.name].map(str::to_owned)
}

fn lines(facts: &Facts<'_>, base: &[String]) -> Vec<Value> {
    let of = |metric: &'static Metric| {
        let line = move |(own, value): (Vec<String>, u64)| Value { metric, labels: [base, &own].concat(), value };
        (metric.values)(facts).into_iter().map(line)
    };
    CADVISOR.iter().flat_map(of).collect()
}

fn started_at(container: &Container) -> Option<i64> {
    match container.state() {
        State::Running { started_at, .. } | State::Exited { started_at, .. } => Some(started_at),
        State::Created => None,
    }
}

fn filesystem(path: &Path) -> Option<Filesystem> {
    let (stat, whole) = (rustix::fs::stat(path).ok()?, rustix::fs::statvfs(path).ok()?);
    let numbers = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    Some(Filesystem {
        device: device(&numbers),
        bytes: whole.f_blocks * whole.f_frsize,
        inodes: whole.f_files,
        free_inodes: whole.f_ffree,
    })
}

/// `/dev/sda` of `8:0`; the numbers where no block device has them, as with btrfs.
fn device(numbers: &str) -> String {
    let text = fs::read_to_string(format!("/sys/dev/block/{numbers}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| numbers.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_labels_that_its_metric_names() {
        let usage = Usage { cpu_pressure: Some(Pressure::default()), ..Usage::default() };
        let layer = Layer::default();
        let devices = [("8:0".to_owned(), DeviceIo { read_bytes: 7, ..DeviceIo::default() })].into();
        let facts = Facts {
            at: 5 * 1_000_000_000,
            started_at: Some(1),
            usage: &usage,
            details: Some(Details { devices, huge_pages: [("2MB".to_owned(), (1, 2))].into(), ..Details::default() }),
            processes: Processes { max_open_files: Some(1024), ..Processes::default() },
            layer: Some((&layer, Filesystem { device: "d".to_owned(), bytes: 1, inodes: 1, free_inodes: 1 })),
            resources: Some(Resources { cpu_quota: -1, ..Resources::default() }),
            interfaces: &[Interface { name: "eth0".to_owned(), ..Interface::default() }],
        };
        let base = LABELS.map(str::to_owned);
        let lines = lines(&facts, &base);
        for line in &lines {
            assert_eq!(line.labels.len(), labels(line.metric).len(), "{}", line.metric.name);
        }
        for metric in &CADVISOR {
            let count = lines.iter().filter(|line| line.metric.name == metric.name).count();
            // Pressure of memory and of io is not known here, and no task was counted.
            let unknown = ["_pressure_memory_", "_pressure_io_", "container_threads"];
            assert!(count > 0 || unknown.iter().any(|part| metric.name.contains(part)), "{}", metric.name);
            // All there are is no count of events.
            let counts = metric.name.ends_with("_total") && !metric.name.ends_with("inodes_total");
            assert_eq!(metric.kind == Counter, counts || metric.name.ends_with("failcnt"), "{}", metric.name);
        }
        let value = |name: &str| lines.iter().find(|line| line.metric.name == name).map(|line| line.value);
        assert_eq!(value("container_spec_cpu_quota"), Some(0));
        assert_eq!(value("container_last_seen"), Some(5));
        assert_eq!(value("container_blkio_device_usage_total"), Some(7));
    }
}
