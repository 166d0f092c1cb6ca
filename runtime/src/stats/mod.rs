//! What pods and containers use, for the kubelet: as CRI's stats, and as the metrics that cAdvisor would give.
//!
//! Nothing is sampled when nobody asks: a look reads counters, and a rate is the difference to the look before.

mod cadvisor;
mod network;
mod processes;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError},
};

pub(crate) use self::{
    cadvisor::{CADVISOR, Kind, Metric, PodMetrics, Value, labels},
    network::Interface,
};
use crate::{
    cgroup::Usage,
    container::{self, Container, Look},
    error::{Error, Kind as ErrorKind, Result},
    machine::Machine,
    node::Node,
    sandbox::{Sandbox, State},
};

/// One look at a pod.
#[derive(Debug)]
pub(crate) struct PodStats {
    pub sandbox: Arc<Sandbox>,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Of the cgroup that the kubelet made for the pod; without one, the sum of its containers.
    pub usage: Usage,
    /// Nanoseconds of CPU time per second, from the second look on.
    pub nano_cores: Option<u64>,
    /// Without `lo`; none where the pod has the host's network.
    pub interfaces: Vec<Interface>,
    pub processes: usize,
    /// Those that run.
    pub containers: Vec<Look>,
    /// Of the pod alone.
    cgroup: Option<String>,
}

/// Of all of `containers` that run.
pub(crate) async fn of_containers(node: &Node, containers: Vec<Arc<Container>>) -> Result<Vec<Look>> {
    container::refresh_layers(&node.machine, &containers).await;
    let machine = node.machine.clone();
    blocking(move || container::all_stats(&machine, containers)).await
}

/// Of all of `sandboxes` that are ready.
pub(crate) async fn of_pods(node: &Node, mut sandboxes: Vec<Arc<Sandbox>>) -> Result<Vec<PodStats>> {
    sandboxes.retain(|sandbox| sandbox.state() == State::Ready);
    let all = node.containers.all();
    let mut by_pod: HashMap<String, Vec<Arc<Container>>> =
        sandboxes.iter().map(|sandbox| (sandbox.meta.id.to_string(), Vec::new())).collect();
    let mut looked_at = Vec::new();
    for container in all {
        if let Some(containers) = by_pod.get_mut(container.meta.sandbox.as_str()) {
            containers.push(container.clone());
            looked_at.push(container);
        }
    }
    container::refresh_layers(&node.machine, &looked_at).await;
    let parents = own_parents(node);
    let machine = node.machine.clone();
    blocking(move || {
        let namespaces: Vec<Option<PathBuf>> = sandboxes.iter().map(|sandbox| sandbox.meta.netns()).collect();
        let interfaces = network::interfaces(namespaces);
        let look = |(sandbox, interfaces): (Arc<Sandbox>, Vec<Interface>)| {
            let containers = by_pod.remove(sandbox.meta.id.as_str()).unwrap_or_default();
            let cgroup = parents.get(sandbox.meta.id.as_str()).cloned();
            look(&machine, sandbox, container::all_stats(&machine, containers), interfaces, cgroup)
        };
        sandboxes.into_iter().zip(interfaces).map(look).collect()
    })
    .await
}

/// Of one pod.
///
/// # Errors
/// `FailedPrecondition` unless it is ready.
pub(crate) async fn of_pod(node: &Node, sandbox: Arc<Sandbox>) -> Result<PodStats> {
    let id = sandbox.meta.id.clone();
    let stats = of_pods(node, vec![sandbox]).await?.pop();
    stats.ok_or_else(|| Error::precondition(format!("sandbox {id} is not ready")))
}

/// Of all pods that are ready.
pub(crate) async fn metrics(node: &Node) -> Result<Vec<PodMetrics>> {
    let pods = of_pods(node, node.sandboxes.all()).await?;
    let machine = node.machine.clone();
    blocking(move || pods.iter().map(|pod| cadvisor::pod_metrics(&machine, pod)).collect()).await
}

async fn blocking<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(look).await.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

fn look(
    machine: &Machine,
    sandbox: Arc<Sandbox>,
    containers: Vec<Look>,
    interfaces: Vec<Interface>,
    cgroup: Option<String>,
) -> PodStats {
    let own = cgroup.as_deref().and_then(|cgroup| machine.cgroups.usage(cgroup).ok());
    let usage = own.unwrap_or_else(|| Usage::sum(containers.iter().map(|(_, stats)| &stats.usage)));
    let count = |cgroup: &str| machine.cgroups.processes(cgroup).len();
    let processes = match &cgroup {
        Some(cgroup) => count(cgroup),
        None => containers.iter().map(|(container, _)| count(&container.meta.cgroup)).sum(),
    };
    let mut sampler = sandbox.sampler.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, nano_cores) = (sampler.at(), sampler.rate(usage.cpu_nanos));
    drop(sampler);
    PodStats { sandbox, at, usage, nano_cores, interfaces, processes, containers, cgroup }
}

/// By sandbox, the cgroups that belong to one ready pod alone.
fn own_parents(node: &Node) -> HashMap<String, String> {
    let ready = node.sandboxes.all().into_iter().filter(|sandbox| sandbox.state() == State::Ready);
    let mut by_parent: HashMap<String, Vec<String>> = HashMap::new();
    for sandbox in ready {
        if let Some(parent) = node.machine.cgroups.parent(&sandbox.meta.config.cgroup_parent) {
            by_parent.entry(parent).or_default().push(sandbox.meta.id.to_string());
        }
    }
    let one =
        |(parent, mut pods): (String, Vec<String>)| pods.pop().filter(|_| pods.is_empty()).map(|pod| (pod, parent));
    by_parent.into_iter().filter_map(one).collect()
}
