//! Samples of pods and containers, for CRI's stats.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use berth_base::{
    blocking::spawn_blocking,
    clock,
    error::{Error, Kind, Result},
};

use super::network::{self, Interface};
use crate::{
    cgroup::Usage,
    container::{self, Container, Sample},
    host::Host,
    node::Node,
    sandbox::{Sandbox, State},
};

/// One sample of a pod.
#[derive(Debug)]
pub struct PodStats {
    pub sandbox: Arc<Sandbox>,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Of the cgroup that the kubelet made for the pod; without one, the sum of its containers.
    pub usage: Usage,
    /// Nanoseconds of CPU time per second since the sample before, or since the pod's start.
    pub nano_cores: Option<u64>,
    /// Without `lo`; none where the pod has the host's network.
    pub interfaces: Vec<Interface>,
    pub processes: usize,
    /// Those that run.
    pub containers: Vec<Sample>,
    /// The cgroup of the pod, if no other pod is in it.
    pub(super) cgroup: Option<String>,
}

/// Samples those of `containers` that run.
pub async fn of_containers(node: &Node, containers: Vec<Arc<Container>>) -> Result<Vec<Sample>> {
    container::refresh_disk_usage(&node.host, &containers).await;
    let host = node.host.clone();
    blocking(move || container::all_stats(&host, containers)).await
}

/// Samples those of `sandboxes` that are ready.
pub async fn of_pods(node: &Node, mut sandboxes: Vec<Arc<Sandbox>>) -> Result<Vec<PodStats>> {
    // A pod that was stopped has no processes, and its cgroup may be gone.
    sandboxes.retain(|sandbox| sandbox.state() == State::Ready);
    let mut by_pod = containers_by_pod(node, &sandboxes);
    let all: Vec<Arc<Container>> = by_pod.values().flatten().cloned().collect();
    container::refresh_disk_usage(&node.host, &all).await;
    // Of all pods, not only of those that are asked for: whether a cgroup is shared depends on the
    // others.
    let mut cgroups = own_cgroups(node);
    let host = node.host.clone();
    blocking(move || {
        // All namespaces at once, since reading them takes a thread of its own.
        let namespaces: Vec<Option<PathBuf>> =
            sandboxes.iter().map(|sandbox| sandbox.meta.netns()).collect();
        let interfaces = network::interfaces(namespaces);
        let mut pods = Vec::with_capacity(sandboxes.len());
        for (sandbox, interfaces) in sandboxes.into_iter().zip(interfaces) {
            let id = sandbox.meta.id.as_str();
            let containers = by_pod.remove(id).unwrap_or_default();
            let containers = container::all_stats(&host, containers);
            let cgroup = cgroups.remove(id);
            pods.push(sample(&host, sandbox, containers, interfaces, cgroup));
        }
        pods
    })
    .await
}

/// Samples one pod.
///
/// # Errors
/// `FailedPrecondition` unless it is ready.
pub async fn of_pod(node: &Node, sandbox: Arc<Sandbox>) -> Result<PodStats> {
    let id = sandbox.meta.id.clone();
    let stats = of_pods(node, vec![sandbox]).await?.pop();
    stats.ok_or_else(|| Error::precondition(format!("sandbox {id} is not ready")))
}

/// Runs `work` in a thread: it reads some ten files for each container.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.map_err(|error| Error::new(Kind::Internal, error.to_string()))
}

/// The containers of these pods, by the id of the pod, in one pass over all containers.
fn containers_by_pod(
    node: &Node,
    sandboxes: &[Arc<Sandbox>],
) -> HashMap<String, Vec<Arc<Container>>> {
    let mut by_pod: HashMap<String, Vec<Arc<Container>>> =
        sandboxes.iter().map(|sandbox| (sandbox.meta.id.to_string(), Vec::new())).collect();
    for container in node.containers.all() {
        if let Some(containers) = by_pod.get_mut(container.meta.sandbox.as_str()) {
            containers.push(container);
        }
    }
    by_pod
}

/// By the id of the pod, the cgroups that belong to one ready pod alone. Without a kubelet, several
/// pods may be in one cgroup, and its counters would be those of all of them.
fn own_cgroups(node: &Node) -> HashMap<String, String> {
    let mut by_parent: HashMap<String, Vec<String>> = HashMap::new();
    for sandbox in node.sandboxes.all() {
        if sandbox.state() != State::Ready {
            continue;
        }
        if let Some(parent) = node.host.cgroups.parent(&sandbox.meta.config.cgroup_parent) {
            by_parent.entry(parent).or_default().push(sandbox.meta.id.to_string());
        }
    }
    let mut cgroups = HashMap::new();
    for (parent, pods) in by_parent {
        if let [pod] = &pods[..] {
            cgroups.insert(pod.clone(), parent);
        }
    }
    cgroups
}

fn sample(
    host: &Host,
    sandbox: Arc<Sandbox>,
    containers: Vec<Sample>,
    interfaces: Vec<Interface>,
    cgroup: Option<String>,
) -> PodStats {
    // A ready pod whose cgroup has just gone is not left out: its containers are added up.
    let own = cgroup.as_deref().and_then(|cgroup| host.cgroups.usage(cgroup).ok());
    // The pod's own cgroup also has what no container has, such as the memory of its tmpfs volumes.
    let usage = own.unwrap_or_else(|| Usage::sum(containers.iter().map(|(_, stats)| &stats.usage)));
    let count = |cgroup: &str| host.cgroups.processes(cgroup).len();
    let processes = match &cgroup {
        Some(cgroup) => count(cgroup),
        None => containers.iter().map(|(container, _)| count(&container.meta.cgroup)).sum(),
    };
    // A sampler turns the counter into a rate, so two requests must not read it at the same time.
    let mut sampler = sandbox.sampler.lock().unwrap_or_else(PoisonError::into_inner);
    let at = sampler.at();
    let nano_cores = sampler.rate(usage.cpu_nanos, clock::since(sandbox.meta.created_at));
    drop(sampler);
    PodStats { sandbox, at, usage, nano_cores, interfaces, processes, containers, cgroup }
}
