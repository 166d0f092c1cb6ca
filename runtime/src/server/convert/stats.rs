//! Stats and metrics, as a client is told them.

use berth_proto::v1;

use super::answer::{container_metadata, sandbox_metadata};
use crate::{
    cgroup::{Pressure, Stall, Usage},
    container::{Look, Stats},
    stats::{self, Interface, PodStats},
};

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<v1::PsiStats> {
    let data = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        Some(v1::PsiData { total: stall.total_micros * 1000, avg10, avg60, avg300 })
    };
    pressure.map(|pressure| v1::PsiStats { full: data(pressure.full), some: data(pressure.some) })
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
        available_bytes: usage.memory_limit.and_then(|limit| value(limit.saturating_sub(usage.working_set))),
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

pub(in crate::server) fn container_stats((container, stats): &Look) -> v1::ContainerStats {
    let meta = &container.meta;
    let Stats { at, usage, nano_cores, layer } = stats;
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
            swap_available_bytes: usage.swap_limit.and_then(|limit| value(limit.saturating_sub(used))),
            swap_usage_bytes: value(used),
        }),
        writable_layer: layer.as_ref().map(|layer| v1::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: layer.path.display().to_string() }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
        io: io(*at, usage),
    }
}

pub(in crate::server) fn sandbox_stats(stats: &PodStats) -> v1::PodSandboxStats {
    let PodStats { sandbox, at, usage, nano_cores, interfaces, processes, containers, .. } = stats;
    let config = &sandbox.meta.config;
    let mut interfaces = interfaces.iter().map(interface);
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
            process: Some(v1::ProcessUsage { timestamp: *at, process_count: value(*processes as u64) }),
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

pub(in crate::server) fn metric_descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |metric: &stats::Metric| v1::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: stats::labels(metric),
    };
    stats::CADVISOR.iter().map(descriptor).collect()
}

pub(in crate::server) fn pod_metrics(metrics: stats::PodMetrics) -> v1::PodSandboxMetrics {
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
        // 0: of this moment.
        timestamp: 0,
        metric_type: kind.into(),
        label_values: line.labels,
        value: value(line.value),
    }
}
