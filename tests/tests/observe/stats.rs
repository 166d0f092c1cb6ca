//! Stats and metrics of a busy pod, compared with what its cgroups and interfaces count.

use std::{collections::HashSet, fs, io::Write, net::TcpStream};

use berth_proto::v1;
use berth_tests::{
    Config, Cri, Machine, container, eventually, has_unified_cgroups, pod, ready, without_load,
};
use futures_util::TryStreamExt;
use tonic::Code;

/// ListContainerStats; StreamContainerStats must return the same.
async fn container_stats(cri: &Cri, filter: v1::ContainerStatsFilter) -> Vec<v1::ContainerStats> {
    let mut runtime = cri.runtime.clone();
    let request = v1::StreamContainerStatsRequest { filter: Some(filter.clone()) };
    let stream = runtime.stream_container_stats(request).await.unwrap().into_inner();
    let pieces: Vec<v1::StreamContainerStatsResponse> = stream.try_collect().await.unwrap();
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let stats = runtime.list_container_stats(request).await.unwrap().into_inner().stats;
    let id = |stats: &v1::ContainerStats| stats.attributes.as_ref().unwrap().id.clone();
    let streamed = pieces.iter().flat_map(|piece| &piece.container_stats).map(id);
    assert!(stats.iter().map(id).eq(streamed));
    stats
}

/// ListPodSandboxStats; StreamPodSandboxStats and PodSandboxStats must return the same.
async fn pod_stats(cri: &Cri, filter: v1::PodSandboxStatsFilter) -> Vec<v1::PodSandboxStats> {
    let mut runtime = cri.runtime.clone();
    let request = v1::StreamPodSandboxStatsRequest { filter: Some(filter.clone()) };
    let stream = runtime.stream_pod_sandbox_stats(request).await.unwrap().into_inner();
    let pieces: Vec<v1::StreamPodSandboxStatsResponse> = stream.try_collect().await.unwrap();
    let request = v1::ListPodSandboxStatsRequest { filter: Some(filter) };
    let stats = runtime.list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
    let attributes = |stats: &v1::PodSandboxStats| stats.attributes.clone().unwrap();
    let streamed = pieces.iter().flat_map(|piece| &piece.pod_sandbox_stats).map(attributes);
    assert!(stats.iter().map(attributes).eq(streamed));
    for one in &stats {
        let request = v1::PodSandboxStatsRequest { pod_sandbox_id: attributes(one).id };
        let single = runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert_eq!(attributes(&single), attributes(one));
    }
    stats
}

/// ListPodSandboxMetrics; StreamPodSandboxMetrics must return the same.
async fn metrics(cri: &Cri) -> Vec<v1::PodSandboxMetrics> {
    let mut runtime = cri.runtime.clone();
    let request = v1::StreamPodSandboxMetricsRequest {};
    let stream = runtime.stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
    let pieces: Vec<v1::StreamPodSandboxMetricsResponse> = stream.try_collect().await.unwrap();
    let request = v1::ListPodSandboxMetricsRequest {};
    let metrics = runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    let streamed =
        pieces.iter().flat_map(|piece| &piece.pod_sandbox_metrics).map(|pod| &pod.pod_sandbox_id);
    assert!(metrics.iter().map(|pod| &pod.pod_sandbox_id).eq(streamed));
    metrics
}

fn number(value: Option<v1::UInt64Value>) -> u64 {
    value.unwrap().value
}

/// Asserts that two numbers differ by a twentieth at most, as counters go on between two reads.
fn assert_near(what: &str, told: u64, counted: u64) {
    assert!(told.abs_diff(counted) <= counted / 20, "{what}: told {told}, counted {counted}");
}

/// A counter of a cgroup: its file, and for each version of cgroups the name of its line, which is
/// empty where the file has the number alone.
fn counter(machine: &Machine, id: &str, v1: (&str, &str), v2: &str, name: (&str, &str)) -> u64 {
    let text = machine.cgroup_file(id, v1, v2);
    let name = if has_unified_cgroups() { name.1 } else { name.0 };
    match name {
        "" => text.parse().unwrap(),
        name => text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap()
            .parse()
            .unwrap(),
    }
}

fn cpu_nanos(machine: &Machine, id: &str) -> u64 {
    counter(machine, id, ("cpuacct", "cpuacct.usage"), "cpu.stat", ("", "usage_usec"))
        * if has_unified_cgroups() { 1000 } else { 1 }
}

const LIMIT: i64 = 256 << 20;
const FILE: u64 = 24 << 20;
const SENT: usize = 8 << 20;
/// Uses anonymous memory, a file on disk and a processor, and listens on a port.
const BURN: &str = "x=$(head -c 20000000 /dev/zero | tr '\\0' a); \
    dd if=/dev/zero of=/file bs=1M count=24 conv=fsync 2>/dev/null; \
    nc -l -p 5000 >/dev/null & \
    echo ready; while true; do :; done";

/// Runs a pod whose container is as busy as that; returns the ids of both.
async fn burn(machine: &Machine, cri: &Cri, image: &str) -> (String, String) {
    let sandbox = cri.run_pod(pod(machine, "burn")).await.unwrap();
    let mut config = container("c", image, BURN);
    let limits = v1::LinuxContainerResources { memory_limit_in_bytes: LIMIT, ..Default::default() };
    config.linux.as_mut().unwrap().resources = Some(limits);
    let id = cri.run(&sandbox, config).await.unwrap();
    let log = cri.status(&id).await.unwrap().log_path;
    eventually("its file", async || fs::read_to_string(&log).unwrap().contains("ready")).await;
    let address = cri.pod_status(&sandbox).await.unwrap().network.unwrap().ip;
    let mut stream = None;
    eventually("its listener", async || {
        stream = machine.in_network(|| TcpStream::connect((address.as_str(), 5000)).ok());
        stream.is_some()
    })
    .await;
    stream.unwrap().write_all(&vec![7; SENT]).unwrap();
    let received = async || {
        cri.sh(&id, "cat /sys/class/net/eth0/statistics/rx_bytes").await.trim().parse::<usize>()
    };
    eventually("what was sent", async || received().await.unwrap() > SENT).await;
    (sandbox, id)
}

#[tokio::test]
async fn a_containers_stats_are_what_its_cgroup_counts() {
    let _alone = without_load().await;
    let (machine, _daemon, cri, image) = ready().await;
    let (sandbox, id) = burn(&machine, &cri, &image).await;
    let look = async || {
        let request = v1::ContainerStatsRequest { container_id: id.clone() };
        cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap()
    };

    let before = cpu_nanos(&machine, &id);
    let first = look().await;
    let after = cpu_nanos(&machine, &id);
    let cpu = first.cpu.unwrap();
    assert!((before..=after).contains(&number(cpu.usage_core_nano_seconds)) && before > 0);
    // With one sample the rate is the average since the start.
    let started_at = cri.status(&id).await.unwrap().started_at;
    let age = (cpu.timestamp - started_at) as u64;
    let since_start = (u128::from(before) * 1_000_000_000 / u128::from(age)) as u64;
    let rate = number(cpu.usage_nano_cores);
    assert!(
        (since_start * 8 / 10..4_000_000_000).contains(&rate) && rate > 0,
        "{rate}, not {since_start}"
    );
    let mut second = look().await;
    eventually("a rate", async || {
        second = look().await;
        let again = second.cpu.as_ref().unwrap();
        // A busy loop gets some of a core on a machine that may have other things to do.
        let busy = again.usage_nano_cores.is_some_and(|rate| rate.value >= 50_000_000);
        busy && again.timestamp - cpu.timestamp > 200_000_000
    })
    .await;
    let later = second.cpu.unwrap();
    assert!(later.timestamp > cpu.timestamp && number(later.usage_nano_cores) < 1_200_000_000);
    assert!(number(later.usage_core_nano_seconds) > number(cpu.usage_core_nano_seconds));

    let memory = second.memory.unwrap();
    let stat = |v1: &str, v2: &str| {
        counter(&machine, &id, ("memory", "memory.stat"), "memory.stat", (v1, v2))
    };
    let in_use =
        counter(&machine, &id, ("memory", "memory.usage_in_bytes"), "memory.current", ("", ""));
    assert_near("memory", number(memory.usage_bytes), in_use);
    assert_near("rss", number(memory.rss_bytes), stat("total_rss", "anon"));
    assert!(number(memory.rss_bytes) > 20_000_000);
    assert_near(
        "working set",
        number(memory.working_set_bytes),
        in_use - stat("total_inactive_file", "inactive_file"),
    );
    assert_eq!(number(memory.available_bytes), LIMIT as u64 - number(memory.working_set_bytes));
    assert_near("page faults", number(memory.page_faults), stat("total_pgfault", "pgfault"));
    let layer = second.writable_layer.unwrap();
    assert_near("writable layer", number(layer.used_bytes), FILE);
    assert!(number(layer.inodes_used) >= 2 && fs::exists(layer.fs_id.unwrap().mountpoint).unwrap());
    assert_eq!(second.attributes.unwrap().metadata.unwrap().name, "c");
    if fs::exists("/proc/pressure/cpu").unwrap() {
        let file = machine.cgroup_file(&id, ("unified", "cpu.pressure"), "cpu.pressure");
        let micros: u64 =
            file.lines().next().unwrap().rsplit_once("total=").unwrap().1.parse().unwrap();
        let told = look().await.cpu.unwrap().psi.unwrap().some.unwrap().total / 1000;
        assert!(told >= micros, "{told} {file}");
    }

    let count = async |filter| container_stats(&cri, filter).await.len();
    assert_eq!(count(v1::ContainerStatsFilter::default()).await, 1);
    assert_eq!(
        count(v1::ContainerStatsFilter { id: "none".into(), ..Default::default() }).await,
        0
    );
    cri.stop(&id, 0).await.unwrap();
    assert_eq!(count(v1::ContainerStatsFilter::default()).await, 0);
    let stats_of = |id: &str| {
        let (mut runtime, request) =
            (cri.runtime.clone(), v1::ContainerStatsRequest { container_id: id.to_owned() });
        async move { runtime.container_stats(request).await.unwrap_err().code() }
    };
    assert_eq!(stats_of(&id).await, Code::FailedPrecondition);
    assert_eq!(stats_of("none").await, Code::NotFound);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_pods_stats_are_those_of_its_cgroup_and_its_interface() {
    let _alone = without_load().await;
    let (machine, _daemon, cri, image) = ready().await;
    let (sandbox, id) = burn(&machine, &cri, &image).await;
    let before = cpu_nanos(&machine, &id);
    let stats = pod_stats(&cri, v1::PodSandboxStatsFilter::default()).await.pop().unwrap();
    let linux = stats.linux.unwrap();
    let own = &linux.containers[0];
    assert_eq!(own.attributes.as_ref().unwrap().id, id);
    let cpu = linux.cpu.unwrap();
    assert!(number(cpu.usage_core_nano_seconds) >= before);
    let memory = number(own.memory.as_ref().unwrap().usage_bytes);
    assert_near("memory", number(linux.memory.unwrap().usage_bytes), memory);
    // The shell, the listener unless it has ended, and in a v1 cgroup the shim too.
    assert!((1..=4).contains(&number(linux.process.unwrap().process_count)));

    let network = linux.network.unwrap().default_interface.unwrap();
    assert_eq!(network.name, "eth0");
    let statistic = async |name: &str| -> u64 {
        cri.sh(&id, &format!("cat /sys/class/net/eth0/statistics/{name}"))
            .await
            .trim()
            .parse()
            .unwrap()
    };
    assert_near("received", number(network.rx_bytes), statistic("rx_bytes").await);
    assert_near("sent", number(network.tx_bytes), statistic("tx_bytes").await);
    assert!(number(network.rx_bytes) > SENT as u64 && number(network.tx_bytes) < SENT as u64 / 10);

    // The cgroup counts for the pod only while no other pod has the same one.
    let mut other = pod(&machine, "idle");
    other.security().namespace_options = Some(v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    });
    let other = cri.run_pod(other).await.unwrap();
    let filter = v1::PodSandboxStatsFilter { id: other.clone(), ..Default::default() };
    let idle = pod_stats(&cri, filter).await.pop().unwrap().linux.unwrap();
    assert_eq!(number(idle.memory.unwrap().usage_bytes), 0, "it has no containers");
    assert!(idle.network.is_none(), "it has the host's");
    let label = v1::PodSandboxStatsFilter {
        label_selector: [("app".into(), "idle".into())].into(),
        ..Default::default()
    };
    assert_eq!(pod_stats(&cri, label).await.len(), 1);

    cri.stop_pod(&other).await.unwrap();
    assert_eq!(pod_stats(&cri, v1::PodSandboxStatsFilter::default()).await.len(), 1);
    let stats_of = |id: &str| {
        let (mut runtime, request) =
            (cri.runtime.clone(), v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() });
        async move { runtime.pod_sandbox_stats(request).await.unwrap_err().code() }
    };
    assert_eq!(stats_of(&other).await, Code::FailedPrecondition);
    assert_eq!(stats_of("none").await, Code::NotFound);
    cri.remove_pod(&other).await.unwrap();
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

/// The metrics that cri-tools' conformance tests expect (`expectedMetricDescriptorNames`).
const NAMES: &str = "\
    blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total \
    cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes \
    fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total \
    hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt \
    memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes \
    memory_rss memory_swap memory_usage_bytes memory_working_set_bytes \
    network_receive_bytes_total network_receive_errors_total \
    network_receive_packets_dropped_total network_receive_packets_total \
    network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total \
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total \
    pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total \
    pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes sockets \
    spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes \
    spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads \
    threads_max ulimits_soft";
/// Metrics that have no sample where the kernel does not count them, or where nothing was read or
/// written.
const OPTIONAL: [&str; 5] = ["blkio_", "fs_reads_", "fs_writes_", "hugetlb_", "pressure_"];

#[tokio::test]
async fn metrics_have_cadvisors_names_and_true_numbers() {
    let _alone = without_load().await;
    let (machine, _daemon, cri, image) = ready().await;
    let (sandbox, id) = burn(&machine, &cri, &image).await;
    let request = v1::ListMetricDescriptorsRequest {};
    let descriptors = cri
        .runtime
        .clone()
        .list_metric_descriptors(request)
        .await
        .unwrap()
        .into_inner()
        .descriptors;
    let names: HashSet<String> = descriptors.iter().map(|one| one.name.clone()).collect();
    let expected: HashSet<String> =
        NAMES.split_whitespace().map(|name| format!("container_{name}")).collect();
    assert_eq!(names, expected);
    assert!(descriptors.len() == 56 && descriptors.iter().all(|one| !one.help.is_empty()));

    // The walk of the layer was due for the first sample, or is for this one.
    let pods = metrics(&cri).await;
    let pod = pods.iter().find(|pod| pod.pod_sandbox_id == sandbox).unwrap();
    let own = pod.container_metrics.iter().find(|container| container.container_id == id).unwrap();
    for metric in pod.metrics.iter().chain(&own.metrics) {
        let descriptor = descriptors.iter().find(|one| one.name == metric.name).unwrap();
        assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        assert!(metric.timestamp == 0 && metric.value.is_some());
    }
    for name in &names {
        let given = pod.metrics.iter().chain(&own.metrics).any(|metric| metric.name == *name);
        assert!(given || OPTIONAL.iter().any(|part| name.contains(part)), "no {name}");
    }

    let value = |metrics: &[v1::Metric], name: &str, label: &str| -> u64 {
        let found = metrics.iter().filter(|metric| metric.name == name);
        let found = found.filter(|metric| {
            label.is_empty() || metric.label_values.iter().any(|value| value == label)
        });
        found.map(|metric| number(metric.value)).sum()
    };
    let in_use =
        counter(&machine, &id, ("memory", "memory.usage_in_bytes"), "memory.current", ("", ""));
    assert_near("memory", value(&own.metrics, "container_memory_usage_bytes", ""), in_use);
    assert_near("layer", value(&own.metrics, "container_fs_usage_bytes", ""), FILE);
    assert!(value(&pod.metrics, "container_network_receive_bytes_total", "eth0") > SENT as u64);
    assert_eq!(value(&own.metrics, "container_spec_memory_limit_bytes", ""), LIMIT as u64);
    let seconds = cpu_nanos(&machine, &id) / 1_000_000_000;
    assert!(
        value(&own.metrics, "container_cpu_usage_seconds_total", "total").abs_diff(seconds) <= 1
    );
    assert!(value(&own.metrics, "container_file_descriptors", "") >= 3);
    assert!(
        value(&own.metrics, "container_threads", "") >= 1
            && value(&own.metrics, "container_processes", "") >= 1
    );
    let written = value(&own.metrics, "container_blkio_device_usage_total", "Write");
    assert!(
        written == value(&own.metrics, "container_fs_writes_bytes_total", "")
            && (written == 0 || written >= FILE)
    );
    let labels: Vec<&str> = own.metrics[0].label_values.iter().map(String::as_str).collect();
    assert!(
        labels.contains(&"c")
            && labels.contains(&"burn")
            && labels.contains(&"test")
            && labels.contains(&id.as_str())
    );

    cri.remove_pod(&sandbox).await.unwrap();
    assert_eq!(metrics(&cri).await, []);
    machine.assert_clean().await;
}
