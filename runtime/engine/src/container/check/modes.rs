//! Namespaces: which modes there are, and what cannot be asked for beside them.

use crate::{
    api::{create::ContainerConfig, host_config::HostConfig},
    http::error::{Failure, Result},
};

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure::bad_request(text))
}

/// What contradicts the network of the host, or that of another container.
pub(super) fn network(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let mode = host.network_mode.as_str();
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return refuse("conflicting options: hostname and the UTS mode");
    }
    let has_links = is_given(host.links.as_ref());
    if mode == "host" && has_links {
        return refuse(
            "conflicting options: host type networking can't be used with links. This would \
             result in undefined behavior",
        );
    }
    let Some(other) = mode.strip_prefix("container:") else { return Ok(()) };
    if other.is_empty() {
        return refuse("invalid network mode: invalid container format container:<name|id>");
    }
    let publishes = host.publish_all_ports
        || host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    let exposes = config.exposed_ports.as_ref().is_some_and(|ports| !ports.is_empty());
    let has_mac = config.mac_address.as_ref().is_some_and(|mac| !mac.is_empty());
    for (is_there, text) in [
        (!config.hostname.is_empty(), "hostname and the network mode"),
        (
            has_links,
            "container type network can't be used with links. This would result in undefined \
             behavior",
        ),
        (is_given(host.dns.as_ref()), "dns and the network mode"),
        (is_given(host.extra_hosts.as_ref()), "custom host-to-IP mapping and the network mode"),
        (has_mac, "mac-address and the network mode"),
        (publishes, "port publishing and the container type network mode"),
        (exposes, "port exposing and the container type network mode"),
    ] {
        if is_there {
            return refuse(format!("conflicting options: {text}"));
        }
    }
    Ok(())
}

fn is_given(list: Option<&Vec<String>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

/// What only Windows has.
pub(super) fn isolation(host: &HostConfig) -> Result<()> {
    if !["", "default"].contains(&host.isolation.to_ascii_lowercase().as_str()) {
        let isolation = &host.isolation;
        return refuse(format!("invalid isolation ({isolation}): linux only supports 'default'"));
    }
    for (is_there, what) in
        [(host.io_maximum_iops != 0, "IOPs"), (host.io_maximum_bandwidth != 0, "bandwidth")]
    {
        if is_there {
            return refuse(format!(
                "invalid option: QoS maximum {what} configuration is not supported on linux"
            ));
        }
    }
    Ok(())
}

/// The modes of the other namespaces.
pub(super) fn namespaces(host: &HostConfig) -> Result<()> {
    let of_container =
        |mode: &str| mode.strip_prefix("container:").is_some_and(|id| !id.is_empty());
    let ipc = host.ipc_mode.as_str();
    if !["", "none", "private", "shareable", "host"].contains(&ipc) && !of_container(ipc) {
        return refuse(format!("invalid IPC mode: {ipc}"));
    }
    let pid = host.pid_mode.as_str();
    if !["", "host"].contains(&pid) && !of_container(pid) {
        return refuse(format!("invalid PID mode: {pid}"));
    }
    let uts = host.uts_mode.as_str();
    if !["", "host"].contains(&uts) {
        return refuse(format!("invalid UTS mode: {uts}"));
    }
    let cgroupns = host.cgroupns_mode.as_str();
    if !["", "private", "host"].contains(&cgroupns) {
        return refuse(format!("invalid cgroup namespace mode: {cgroupns}"));
    }
    Ok(())
}
