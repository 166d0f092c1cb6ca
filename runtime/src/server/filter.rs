//! Which objects a list has. Everything that a filter gives must match, and an empty one matches all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use berth_proto::v1;

use super::convert;
use crate::{container::Container, node::Node, sandbox::Sandbox};

pub(super) fn sandboxes(node: &Node, filter: Option<v1::PodSandboxFilter>) -> Vec<Arc<Sandbox>> {
    let filter = filter.unwrap_or_default();
    let mut sandboxes = node.sandboxes.all();
    sandboxes.retain(|sandbox| {
        let meta = &sandbox.meta;
        meta.id.as_str().starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|wanted| wanted.state() == convert::sandbox_state(sandbox))
            && labels_match(&filter.label_selector, &meta.config.labels)
    });
    sandboxes
}

pub(super) fn containers(node: &Node, filter: Option<v1::ContainerFilter>) -> Vec<Arc<Container>> {
    let filter = filter.unwrap_or_default();
    let mut containers = node.containers.all();
    containers.retain(|container| {
        let meta = &container.meta;
        meta.id.as_str().starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|wanted| wanted.state() == convert::container_state(&container.state()))
            && meta.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
            && labels_match(&filter.label_selector, &meta.config.labels)
    });
    containers
}

pub(super) fn stats_of_sandboxes(node: &Node, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<Arc<Sandbox>> {
    let v1::PodSandboxStatsFilter { id, label_selector } = filter.unwrap_or_default();
    sandboxes(node, Some(v1::PodSandboxFilter { id, label_selector, state: None }))
}

pub(super) fn stats_of_containers(node: &Node, filter: Option<v1::ContainerStatsFilter>) -> Vec<Arc<Container>> {
    let v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector } = filter.unwrap_or_default();
    containers(node, Some(v1::ContainerFilter { id, pod_sandbox_id, label_selector, state: None }))
}

fn labels_match(wanted: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
