//! The namespaces of a run: which are its own, the host's, or those of another container.

use berth_base::id::SandboxId;
use berth_node::sandbox::{self, NamespaceMode, NamespaceModes};
use http::StatusCode;

use crate::{
    api::host_config::HostConfig,
    engine::Engine,
    http::error::{Failure, Result},
};

pub(super) fn modes(host: &HostConfig) -> NamespaceModes {
    let or_host = |mode: &str, own: NamespaceMode| match mode {
        "host" => NamespaceMode::Node,
        _ => own,
    };
    let target = of_container(&host.pid_mode);
    NamespaceModes {
        network: or_host(&host.network_mode, NamespaceMode::Pod),
        pid: match target {
            Some(_) => NamespaceMode::Target,
            None => or_host(&host.pid_mode, NamespaceMode::Container),
        },
        ipc: or_host(&host.ipc_mode, NamespaceMode::Pod),
        uts: Some(or_host(&host.uts_mode, NamespaceMode::Pod)),
        target: target.unwrap_or_default().to_owned(),
        user: None,
    }
}

/// What a sandbox is told of IPC: whose namespace it has, and its /dev/shm.
pub(super) fn share_memory(host: &HostConfig, sandbox: &mut sandbox::Config) {
    sandbox.join_ipc = of_container(&host.ipc_mode).map(|id| SandboxId::from(id.to_owned()));
    sandbox.without_shm = host.ipc_mode == "none";
    sandbox.shm_size = u64::try_from(host.shm_size).unwrap_or_default();
}

/// Whether its first process is the first of a PID namespace, which is what needs an init.
pub(super) fn owns_processes(host: &HostConfig) -> bool {
    host.pid_mode.is_empty()
}

/// The id in `container:ID`.
fn of_container(mode: &str) -> Option<&str> {
    mode.strip_prefix("container:")
}

/// Refuses namespaces of containers that do not run, or do not share theirs.
///
/// # Errors
/// 409 for one that does not run, 404 for one that is gone, 400 for one that keeps its IPC to itself.
pub(crate) fn check_joins(engine: &Engine, host: &HostConfig) -> Result<()> {
    for (mode, kind) in [(&host.ipc_mode, "IPC"), (&host.pid_mode, "PID")] {
        let Some(id) = of_container(mode) else { continue };
        let refuse = |status: StatusCode, why: String| {
            Err(Failure::new(status, format!("failed to join {kind} namespace: {why}")))
        };
        let other = match engine.containers.find(id) {
            Ok(other) => other,
            Err(failure) => return refuse(failure.status, failure.message),
        };
        if !other.state().is_running() {
            return refuse(StatusCode::CONFLICT, format!("container {id} is not running"));
        }
        let its = other.record();
        if kind == "IPC" && ["private", "none"].contains(&its.host_config.ipc_mode.as_str()) {
            return refuse(
                StatusCode::BAD_REQUEST,
                format!(
                    "container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor \
                     container)"
                ),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_the_request() {
        let host = HostConfig {
            network_mode: "host".into(),
            pid_mode: "container:abc".into(),
            ipc_mode: "none".into(),
            uts_mode: "host".into(),
            shm_size: 5,
            ..HostConfig::default()
        };
        let of = modes(&host);
        assert_eq!((of.network, of.pid), (NamespaceMode::Node, NamespaceMode::Target));
        assert_eq!((of.ipc, of.uts), (NamespaceMode::Pod, Some(NamespaceMode::Node)));
        assert_eq!(of.target, "abc");
        let mut sandbox = sandbox::Config::default();
        share_memory(&host, &mut sandbox);
        assert_eq!((sandbox.without_shm, sandbox.shm_size), (true, 5));
        let plain = modes(&HostConfig { ipc_mode: "shareable".into(), ..HostConfig::default() });
        assert_eq!((plain.pid, plain.ipc), (NamespaceMode::Container, NamespaceMode::Pod));
        assert_eq!(plain.uts, Some(NamespaceMode::Pod));
    }
}
