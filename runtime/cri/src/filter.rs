//! Which objects a list contains. An object must match every field that is set in the filter; an
//! empty filter matches all objects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use berth_node::{Node, container::Container, sandbox::Sandbox};
use berth_proto::v1;

use super::convert;

/// The pods of ListPodSandbox. Ids may be prefixes, as crictl abbreviates them.
pub(super) fn sandboxes(node: &Node, filter: Option<v1::PodSandboxFilter>) -> Vec<Arc<Sandbox>> {
    let filter = filter.unwrap_or_default();
    let mut sandboxes = node.sandboxes.all();
    sandboxes.retain(|sandbox| {
        let meta = &sandbox.meta;
        meta.id.as_str().starts_with(&filter.id)
            && filter
                .state
                .as_ref()
                .is_none_or(|wanted| wanted.state() == convert::sandbox_state(sandbox))
            && labels_match(&filter.label_selector, &meta.config.labels)
    });
    sandboxes
}

/// The containers of ListContainers.
pub(super) fn containers(node: &Node, filter: Option<v1::ContainerFilter>) -> Vec<Arc<Container>> {
    let filter = filter.unwrap_or_default();
    let mut containers = node.containers.all();
    containers.retain(|container| {
        let meta = &container.meta;
        meta.id.as_str().starts_with(&filter.id)
            && filter
                .state
                .as_ref()
                .is_none_or(|wanted| wanted.state() == convert::container_state(&container.state()))
            && meta.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
            && labels_match(&filter.label_selector, &meta.config.labels)
    });
    containers
}

/// The pods of ListPodSandboxStats, whose filter has no state.
pub(super) fn stats_of_sandboxes(
    node: &Node,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<Arc<Sandbox>> {
    let v1::PodSandboxStatsFilter { id, label_selector } = filter.unwrap_or_default();
    sandboxes(node, Some(v1::PodSandboxFilter { id, label_selector, state: None }))
}

/// The containers of ListContainerStats, whose filter has no state. Those that do not run are left
/// out when they are sampled.
pub(super) fn stats_of_containers(
    node: &Node,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<Arc<Container>> {
    let v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector } =
        filter.unwrap_or_default();
    containers(node, Some(v1::ContainerFilter { id, pod_sandbox_id, label_selector, state: None }))
}

fn labels_match(wanted: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
