//! The metrics of pods and containers, with cAdvisor's names and the labels that the kubelet gives
//! them: dashboards and alerts that read /metrics/cadvisor go on working when the kubelet asks the
//! runtime instead (KEP 2371).

mod facts;
mod table;

use std::path::Path;

use berth_base::error::Result;

pub use self::{
    facts::{Kind, Metric},
    table::CADVISOR,
};

use self::{
    facts::{Disk, Facts, Filesystem, SHARED_LABELS},
    table::device_name,
};
use super::{
    processes::{self, Processes},
    sample::{self, PodStats},
};
use crate::{container::Sample, host::Host, node::Node, sandbox::Sandbox};

/// One line of a metric.
#[derive(Debug)]
pub struct Value {
    pub metric: &'static Metric,
    /// In the order of `Metric::labels`.
    pub labels: Vec<String>,
    pub value: u64,
}

#[derive(Debug)]
pub struct PodMetrics {
    pub sandbox: String,
    pub values: Vec<Value>,
    /// By the id of the container.
    pub containers: Vec<(String, Vec<Value>)>,
}

/// The metrics of all pods that are ready.
pub async fn metrics(node: &Node) -> Result<Vec<PodMetrics>> {
    let pods = sample::of_pods(node, node.sandboxes.all()).await?;
    let host = node.host.clone();
    sample::blocking(move || pods.iter().map(|pod| pod_metrics(&host, pod)).collect()).await
}

fn pod_metrics(host: &Host, pod: &PodStats) -> PodMetrics {
    let sandbox = &pod.sandbox;
    let id = sandbox.meta.id.as_str();
    let facts = Facts {
        at: pod.at,
        started_at: Some(sandbox.meta.created_at),
        usage: &pod.usage,
        details: pod.cgroup.as_deref().map(|cgroup| host.cgroups.details(cgroup)),
        processes: Processes { count: pod.processes as u64, ..Processes::default() },
        disk: None,
        resources: None,
        interfaces: &pod.interfaces,
    };
    let cgroup = pod.cgroup.as_deref().unwrap_or_default();
    PodMetrics {
        sandbox: id.to_owned(),
        values: values(&facts, &shared_labels(sandbox, "", cgroup, "", id)),
        containers: pod
            .containers
            .iter()
            .map(|container| container_metrics(host, sandbox, container))
            .collect(),
    }
}

fn container_metrics(
    host: &Host,
    sandbox: &Sandbox,
    (container, stats): &Sample,
) -> (String, Vec<Value>) {
    let meta = &container.meta;
    let pids = host.cgroups.processes(&meta.cgroup);
    let first = container.pid().unwrap_or(0);
    let facts = Facts {
        at: stats.at,
        started_at: container.state().started().map(|started| started.at),
        usage: &stats.usage,
        details: Some(host.cgroups.details(&meta.cgroup)),
        processes: processes::read(&pids, first),
        // Absent until its files were counted once.
        disk: stats.disk.as_ref().and_then(|used| {
            let filesystem = filesystem(&used.path)?;
            Some(Disk { used, filesystem })
        }),
        resources: Some(container.resources()),
        interfaces: &[],
    };
    let id = meta.id.as_str();
    let labels = shared_labels(sandbox, &meta.config.name, &meta.cgroup, meta.image_name(), id);
    (id.to_owned(), values(&facts, &labels))
}

/// The values of `SHARED_LABELS`. As in the kubelet's own metrics, `id` is the path of the cgroup,
/// `name` the id of the container, and a pod's metrics have an empty `container`.
fn shared_labels(
    sandbox: &Sandbox,
    container: &str,
    cgroup: &str,
    image: &str,
    name: &str,
) -> [String; SHARED_LABELS.len()] {
    let config = &sandbox.meta.config;
    let id = if cgroup.is_empty() { String::new() } else { format!("/{cgroup}") };
    [container, &id, image, name, &config.namespace, &config.name].map(str::to_owned)
}

fn values(facts: &Facts<'_>, shared: &[String]) -> Vec<Value> {
    let mut values = Vec::new();
    for metric in &CADVISOR {
        for (own, value) in metric.read(facts) {
            values.push(Value { metric, labels: [shared, &own].concat(), value });
        }
    }
    values
}

fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = rustix::fs::stat(path).ok()?;
    let whole = rustix::fs::statvfs(path).ok()?;
    let major = rustix::fs::major(stat.st_dev);
    let minor = rustix::fs::minor(stat.st_dev);
    Some(Filesystem {
        device: device_name(&format!("{major}:{minor}")),
        bytes: whole.f_blocks * whole.f_frsize,
        inodes: whole.f_files,
        free_inodes: whole.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::network::Interface, *};
    use crate::{
        cgroup::{Details, DeviceIo, HugePages, Pressure, Resources, Usage},
        container::DiskUsage,
    };

    #[test]
    fn every_value_has_the_labels_that_its_metric_names() {
        let usage = Usage { cpu_pressure: Some(Pressure::default()), ..Usage::default() };
        let used = DiskUsage::default();
        let device = DeviceIo { read_bytes: 7, ..DeviceIo::default() };
        let filesystem = Filesystem { device: "d".to_owned(), bytes: 1, inodes: 1, free_inodes: 1 };
        let facts = Facts {
            at: 5 * 1_000_000_000,
            started_at: Some(1),
            usage: &usage,
            details: Some(Details {
                devices: [("8:0".to_owned(), device)].into(),
                huge_pages: [("2MB".to_owned(), HugePages { current: 1, max: 2 })].into(),
                ..Details::default()
            }),
            processes: Processes { max_open_files: Some(1024), ..Processes::default() },
            disk: Some(Disk { used: &used, filesystem }),
            resources: Some(Resources { cpu_quota: -1, ..Resources::default() }),
            interfaces: &[Interface { name: "eth0".to_owned(), ..Interface::default() }],
        };
        let lines = values(&facts, &SHARED_LABELS.map(str::to_owned));
        for line in &lines {
            assert_eq!(line.labels.len(), line.metric.labels().len(), "{}", line.metric.name);
        }
        for metric in &CADVISOR {
            let name = metric.name;
            let count = lines.iter().filter(|line| line.metric.name == name).count();
            // Pressure of memory and of I/O is not known here, and no task was counted.
            let unknown = ["_pressure_memory_", "_pressure_io_", "container_threads"];
            assert!(count > 0 || unknown.iter().any(|part| name.contains(part)), "{name}");
            // The total of inodes is not a count of events.
            let is_total = name.ends_with("_total") && !name.ends_with("inodes_total");
            let counts = is_total || name.ends_with("failcnt");
            assert_eq!(metric.kind == Kind::Counter, counts, "{name}");
        }
        let value =
            |name: &str| lines.iter().find(|line| line.metric.name == name).map(|line| line.value);
        assert_eq!(value("container_spec_cpu_quota"), Some(0));
        assert_eq!(value("container_last_seen"), Some(5));
        assert_eq!(value("container_blkio_device_usage_total"), Some(7));
    }
}
