//! Stats and metrics in CRI's messages.

use berth_node::{
    cgroup::{Pressure, Stall, Usage},
    container::{Sample, Stats},
    stats::{self, Interface, PodStats},
};
use berth_proto::v1;

use super::response::{container_metadata, sandbox_metadata};

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<v1::PsiStats> {
    let Pressure { full, some } = pressure?;
    Some(v1::PsiStats { full: Some(psi_data(full)), some: Some(psi_data(some)) })
}

/// The kernel counts microseconds, and CRI nanoseconds.
fn psi_data(stall: Stall) -> v1::PsiData {
    let [avg10, avg60, avg300] = stall.averages;
    v1::PsiData { total: stall.total_micros * 1000, avg10, avg60, avg300 }
}

fn cpu(at: i64, usage: &Usage, nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu_nanos),
        usage_nano_cores: nano_cores.and_then(value),
        psi: psi(usage.cpu_pressure),
    }
}

fn memory(at: i64, usage: &Usage) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.working_set),
        // What is left of the limit; None without one.
        available_bytes: usage
            .memory_limit
            .and_then(|limit| value(limit.saturating_sub(usage.working_set))),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: psi(usage.memory_pressure),
    }
}

fn io(at: i64, usage: &Usage) -> Option<v1::IoUsage> {
    usage.io_pressure.map(|pressure| v1::IoUsage { timestamp: at, psi: psi(Some(pressure)) })
}

pub(crate) fn container_stats((container, stats): &Sample) -> v1::ContainerStats {
    let meta = &container.meta;
    let Stats { at, usage, nano_cores, disk } = stats;
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: meta.id.to_string(),
            metadata: Some(container_metadata(&meta.config)),
            labels: meta.config.labels.clone().into_iter().collect(),
            annotations: meta.config.annotations.clone().into_iter().collect(),
        }),
        cpu: Some(cpu(*at, usage, *nano_cores)),
        memory: Some(memory(*at, usage)),
        swap: usage.swap.map(|used| v1::SwapUsage {
            timestamp: *at,
            swap_available_bytes: usage
                .swap_limit
                .and_then(|limit| value(limit.saturating_sub(used))),
            swap_usage_bytes: value(used),
        }),
        // None until the files were counted once. 0 would mean that the container wrote nothing.
        writable_layer: disk.as_ref().map(|disk| v1::FilesystemUsage {
            timestamp: disk.at,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: disk.path.display().to_string() }),
            used_bytes: value(disk.bytes),
            inodes_used: value(disk.inodes),
        }),
        io: io(*at, usage),
    }
}

pub(crate) fn sandbox_stats(stats: &PodStats) -> v1::PodSandboxStats {
    let PodStats { sandbox, at, usage, nano_cores, interfaces, processes, containers, .. } = stats;
    let config = &sandbox.meta.config;
    let mut interfaces = interfaces.iter().map(interface);
    // The first interface besides `lo` is taken for the default one. With the host's network there
    // is none.
    let network = interfaces.next().map(|first| v1::NetworkUsage {
        timestamp: *at,
        default_interface: Some(first),
        interfaces: interfaces.collect(),
    });
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.meta.id.to_string(),
            metadata: Some(sandbox_metadata(config)),
            labels: config.labels.clone().into_iter().collect(),
            annotations: config.annotations.clone().into_iter().collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu(*at, usage, *nano_cores)),
            memory: Some(memory(*at, usage)),
            network,
            process: Some(v1::ProcessUsage {
                timestamp: *at,
                process_count: value(*processes as u64),
            }),
            containers: containers.iter().map(container_stats).collect(),
            io: io(*at, usage),
        }),
        windows: None,
    }
}

fn interface(interface: &Interface) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    }
}

pub(crate) fn metric_descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |metric: &stats::Metric| v1::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: metric.labels(),
    };
    stats::CADVISOR.iter().map(descriptor).collect()
}

pub(crate) fn pod_metrics(metrics: stats::PodMetrics) -> v1::PodSandboxMetrics {
    let values = |values: Vec<stats::Value>| values.into_iter().map(metric).collect();
    let container = |(id, lines)| v1::ContainerMetrics { container_id: id, metrics: values(lines) };
    v1::PodSandboxMetrics {
        pod_sandbox_id: metrics.sandbox,
        metrics: values(metrics.values),
        container_metrics: metrics.containers.into_iter().map(container).collect(),
    }
}

fn metric(line: stats::Value) -> v1::Metric {
    let kind = match line.metric.kind {
        stats::Kind::Counter => v1::MetricType::Counter,
        stats::Kind::Gauge => v1::MetricType::Gauge,
    };
    v1::Metric {
        name: line.metric.name.to_owned(),
        // 0 means "now".
        timestamp: 0,
        metric_type: kind.into(),
        label_values: line.labels,
        value: value(line.value),
    }
}
