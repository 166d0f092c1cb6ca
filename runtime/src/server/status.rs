//! Version, Status, and the verbose `info` maps that crictl prints.

use std::collections::HashMap;

use berth_proto::v1;
use serde_json::json;

use super::inspect;
use crate::{container::Container, image::Image, node::Node, sandbox::Sandbox};

pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        // Of the kubelet's own interface, fixed since there is one.
        version: "0.1.0".to_owned(),
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

pub(super) async fn status(node: &Node, verbose: bool) -> v1::StatusResponse {
    let condition = |kind: &str, reason: &str, failure: Option<String>| v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: failure.is_none(),
        reason: if failure.is_some() { reason.to_owned() } else { String::new() },
        message: failure.unwrap_or_default(),
    };
    let runtime = node.machine.layout.check_writable().err().map(|error| format!("{error:#}"));
    let network =
        node.machine.networks.status().await.err().map(|error| format!("Network plugin returns error: {error:#}"));
    let handler = |(name, own): (&str, bool)| {
        let user_namespaces = own && node.machine.user_namespaces;
        let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts: own, user_namespaces };
        v1::RuntimeHandler { name: name.to_owned(), features: Some(features) }
    };
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "RuntimeNotReady", runtime),
                condition("NetworkReady", "NetworkPluginNotReady", network),
            ],
        }),
        info: if verbose { info(node) } else { HashMap::new() },
        runtime_handlers: node.machine.handlers.all().map(handler).collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            ..v1::RuntimeFeatures::default()
        }),
    }
}

/// crictl merges values that are JSON objects into its output, so each of them is one.
fn one(key: &str, value: &serde_json::Value) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_string())])
}

fn info(node: &Node) -> HashMap<String, String> {
    let layout = &node.machine.layout;
    let config = json!({ "rootDir": layout.root, "stateDir": layout.state, "cgroupVersion": if node.machine.cgroups.is_v2 { 2 } else { 1 } });
    let counts = json!({ "sandboxes": node.sandboxes.all().len(), "containers": node.containers.all().len() });
    let mut info = one("config", &config);
    info.extend(one("cniconfig", &node.machine.networks.info()));
    info.extend(one("objects", &counts));
    info
}

pub(super) async fn sandbox_info(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let meta = &sandbox.meta;
    let check = sandbox.check_network(&node.machine).await;
    let (overhead, resources) = sandbox.sizes();
    one(
        "info",
        &json!({
            "overhead": overhead,
            "resources": resources,
            "netNamespace": meta.netns(),
            "cniResult": sandbox.cni_result(&node.machine.layout),
            "cniCheck": check.map_or_else(|error| format!("{error:#}"), str::to_owned),
            "runtimeHandler": meta.config.runtime_handler,
            "config": meta.config,
            "runtimeSpec": inspect::of_sandbox(sandbox, &node.machine.layout),
        }),
    )
}

pub(super) fn container_info(node: &Node, container: &Container) -> HashMap<String, String> {
    let meta = &container.meta;
    one(
        "info",
        &json!({
            "sandboxID": meta.sandbox,
            "pid": container.pid().unwrap_or(0),
            "privileged": meta.config.security.privileged,
            "config": meta.config,
            "spec": container.spec(&node.machine.layout),
            "runtimeSpec": inspect::of_container(container, &node.machine.layout),
        }),
    )
}

pub(super) fn image_info(image: &Image) -> HashMap<String, String> {
    one("info", &json!({ "layers": image.layers, "imageSpec": image.config }))
}
