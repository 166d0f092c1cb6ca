//! Version, Status, and the `info` maps that verbose statuses have and crictl prints.

use std::collections::HashMap;

use berth_image::Image;
use berth_node::{Node, container::Container, sandbox::Sandbox};
use berth_proto::v1;
use serde_json::json;

use super::inspect;

/// The response to Version.
pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        // The version of the kubelet's side of CRI, which has never changed.
        version: "0.1.0".to_owned(),
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// The response to Status. The kubelet takes the node for ready if both conditions hold.
pub(super) async fn status(node: &Node, verbose: bool) -> v1::StatusResponse {
    let runtime = node.host.check_disks().await.err().map(|error| format!("{error:#}"));
    let network = node
        .host
        .networks
        .status()
        .await
        .err()
        // The words of containerd and CRI-O, which people search for.
        .map(|error| format!("Network plugin returns error: {error:#}"));
    let user_namespaces = node.host.user_namespaces;
    let handlers = node.host.handlers.all();
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "RuntimeNotReady", runtime),
                condition("NetworkReady", "NetworkPluginNotReady", network),
            ],
        }),
        info: if verbose { info(node).await } else { HashMap::new() },
        runtime_handlers: handlers
            .map(|(name, is_own)| runtime_handler(name, is_own, user_namespaces))
            .collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: node.host.user_namespaces,
            mount_options: true,
        }),
    }
}

/// A condition, which holds if there is no `failure`. Its reason is `reason` otherwise.
fn condition(kind: &str, reason: &str, failure: Option<String>) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: failure.is_none(),
        reason: if failure.is_some() { reason.to_owned() } else { String::new() },
        message: failure.unwrap_or_default(),
    }
}

/// A handler and what its containers can have. Another OCI runtime than berth's own has neither of
/// the two features.
fn runtime_handler(name: &str, is_own: bool, user_namespaces: bool) -> v1::RuntimeHandler {
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: is_own,
        user_namespaces: is_own && user_namespaces,
    };
    v1::RuntimeHandler { name: name.to_owned(), features: Some(features) }
}

/// An `info` map with one entry. crictl merges values that are JSON objects into its output, so
/// every value is one.
fn one(key: &str, value: &serde_json::Value) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_string())])
}

async fn info(node: &Node) -> HashMap<String, String> {
    let layout = &node.host.layout;
    let config = json!({
        "rootDir": layout.root,
        "stateDir": layout.state,
        "cgroupVersion": if node.host.cgroups.is_v2 { 2 } else { 1 },
    });
    let counts = json!({
        "sandboxes": node.sandboxes.all().len(),
        "containers": node.containers.all().len(),
    });
    let mut info = one("config", &config);
    info.extend(one("cniconfig", &node.host.networks.info().await));
    info.extend(one("objects", &counts));
    info
}

/// What `crictl inspectp` shows besides the status.
pub(super) async fn sandbox_info(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let meta = &sandbox.meta;
    let check = sandbox.check_network(&node.host).await;
    let sizes = sandbox.sizes();
    one(
        "info",
        &json!({
            "overhead": sizes.overhead,
            "resources": sizes.resources,
            "netNamespace": meta.netns(),
            "cniResult": sandbox.cni_result(&node.host.layout),
            "cniCheck": check.map_or_else(|error| format!("{error:#}"), str::to_owned),
            "runtimeHandler": meta.config.runtime_handler,
            "config": meta.config,
            "runtimeSpec": inspect::of_sandbox(sandbox, &node.host.layout),
        }),
    )
}

/// What `crictl inspect` shows besides the status.
pub(super) fn container_info(node: &Node, container: &Container) -> HashMap<String, String> {
    let meta = &container.meta;
    one(
        "info",
        &json!({
            "sandboxID": meta.sandbox,
            "pid": container.pid().unwrap_or(0),
            "privileged": meta.config.security.privileged,
            "config": meta.config,
            "spec": container.spec(),
            "runtimeSpec": inspect::of_container(container, &node.host.layout),
        }),
    )
}

/// What `crictl inspecti` shows besides the status.
pub(super) fn image_info(image: &Image) -> HashMap<String, String> {
    one("info", &json!({ "layers": image.layers, "imageSpec": image.config }))
}
