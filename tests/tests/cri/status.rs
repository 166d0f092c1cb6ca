//! Version, Status and RuntimeConfig: what the kubelet asks before it gives pods to a node.

use std::{collections::HashMap, fs};

use berth_proto::v1;
use berth_tests::{Machine, has_systemd_scopes, pod};
use tonic::Code;

#[tokio::test]
async fn version_status_and_config_are_what_the_kubelet_requires() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let mut runtime = daemon.cri().runtime;
    let version = runtime.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        (
            version.version.as_str(),
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("0.1.0", "berth", "v1")
    );
    let status = runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions: HashMap<String, bool> =
        status.status.unwrap().conditions.into_iter().map(|c| (c.r#type, c.status)).collect();
    assert_eq!(
        conditions,
        HashMap::from([("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), true)])
    );
    let handlers: Vec<String> =
        status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
    assert_eq!(handlers, ["", "berth", "runc", "test-handler"]);
    for value in status.info.values() {
        assert!(serde_json::from_str::<serde_json::Value>(value).unwrap().is_object(), "{value}");
    }
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let driver =
        if has_systemd_scopes() { v1::CgroupDriver::Systemd } else { v1::CgroupDriver::Cgroupfs };
    assert_eq!(config.linux.unwrap().cgroup_driver(), driver);
    runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await.unwrap();
    let missing =
        runtime.checkpoint_container(v1::CheckpointContainerRequest::default()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented);
    assert_eq!(missing.message(), "method CheckpointContainer not implemented");
}

#[tokio::test]
async fn network_is_not_ready_when_a_conf_is_broken_or_its_plugin_missing() {
    let machine = Machine::new();
    // An empty directory, so that there is no earlier good configuration to fall back on.
    fs::create_dir_all(machine.path("net.d")).unwrap();
    let daemon = machine.start().await;
    for (text, what) in [
        ("{", "00.conflist"),
        (
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}"#,
            "no-such-plugin",
        ),
    ] {
        fs::write(machine.path("net.d/00.conflist"), text).unwrap();
        let status =
            daemon.cri().runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
        let network = status
            .status
            .unwrap()
            .conditions
            .into_iter()
            .find(|condition| condition.r#type == "NetworkReady")
            .unwrap();
        assert!(
            !network.status
                && network.reason == "NetworkPluginNotReady"
                && network.message.contains(what),
            "{network:?}"
        );
        assert!(network.message.starts_with("Network plugin returns error:"));
        let refused = daemon.cri().run_pod(pod(&machine, "p")).await.unwrap_err();
        assert!(refused.message().contains(what), "{refused}");
    }
    machine.assert_clean().await;
}
