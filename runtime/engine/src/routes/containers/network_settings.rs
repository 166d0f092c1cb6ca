//! What inspect and list say of a container's networks.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;
use serde_json::Value;

use crate::{
    api::host_config::PortBinding,
    container::{object::Container, record::Record},
    engine::Engine,
};

/// `NetworkSettings` of inspect. The fields of the top are those of the default bridge.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    bridge: String,
    #[serde(rename = "SandboxID")]
    sandbox_id: String,
    sandbox_key: String,
    ports: BTreeMap<String, Option<Vec<PortBinding>>>,
    hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    link_local_ipv6_address: String,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    link_local_ipv6_prefix_len: u8,
    #[serde(rename = "SecondaryIPAddresses")]
    secondary_ip_addresses: Option<Vec<Value>>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    secondary_ipv6_addresses: Option<Vec<Value>>,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    mac_address: String,
    networks: BTreeMap<String, Endpoint>,
}

/// What a container has of one network.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Endpoint {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<Value>,
    pub links: Option<Vec<String>>,
    pub aliases: Option<Vec<String>>,
    pub mac_address: String,
    pub driver_opts: Option<BTreeMap<String, String>>,
    pub gw_priority: i64,
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    pub gateway: String,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

/// A port in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Port {
    #[serde(rename = "IP", skip_serializing_if = "String::is_empty")]
    pub ip: String,
    pub private_port: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub public_port: u16,
    #[serde(rename = "Type")]
    pub protocol: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// All that is known of a container's networks.
pub(crate) fn network_settings(engine: &Engine, container: &Container) -> NetworkSettings {
    let record = container.record();
    let networks = endpoints(engine, container);
    let first = networks.get("bridge").cloned().unwrap_or_default();
    let is_running = container.state().is_running();
    NetworkSettings {
        ports: if is_running { ports(&record) } else { BTreeMap::new() },
        endpoint_id: first.endpoint_id,
        gateway: first.gateway,
        global_ipv6_address: first.global_ipv6_address,
        global_ipv6_prefix_len: first.global_ipv6_prefix_len,
        ip_address: first.ip_address,
        ip_prefix_len: first.ip_prefix_len,
        ipv6_gateway: first.ipv6_gateway,
        mac_address: first.mac_address,
        networks,
        ..NetworkSettings::default()
    }
}

/// Its networks by name. A container that shares another's has none of its own.
pub(crate) fn endpoints(engine: &Engine, container: &Container) -> BTreeMap<String, Endpoint> {
    let record = container.record();
    let name = record.host_config.network_mode.as_str();
    if name.starts_with("container:") {
        return BTreeMap::new();
    }
    let sandbox = engine.node.sandboxes.find(&container.id).ok();
    let addresses = sandbox.map(|sandbox| sandbox.addresses()).unwrap_or_default();
    let text = |wanted: fn(&IpAddr) -> bool| {
        let found = addresses.iter().find(|address| wanted(address));
        found.filter(|_| name != "host").map(ToString::to_string).unwrap_or_default()
    };
    let endpoint = Endpoint {
        ip_address: text(IpAddr::is_ipv4),
        global_ipv6_address: text(IpAddr::is_ipv6),
        ..Endpoint::default()
    };
    BTreeMap::from([(name.to_owned(), endpoint)])
}

/// The ports that it exposes, with what they are published as.
fn ports(record: &Record) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let exposed =
        record.config.exposed_ports.iter().flatten().map(|(port, _)| (port.clone(), None));
    let mut ports: BTreeMap<_, _> = exposed.collect();
    for (port, bindings) in record.host_config.port_bindings.iter().flatten() {
        let bindings = bindings.clone().filter(|bindings| !bindings.is_empty());
        ports.insert(port.clone(), bindings);
    }
    ports
}

/// The ports of a list, of a container that runs.
pub(crate) fn listed_ports(container: &Container) -> Vec<Port> {
    if !container.state().is_running() {
        return Vec::new();
    }
    let mut listed = Vec::new();
    for (port, bindings) in ports(&container.record()) {
        let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
        let of = |ip: &str, public_port: &str| Port {
            ip: ip.to_owned(),
            private_port: number.parse().unwrap_or(0),
            public_port: public_port.parse().unwrap_or(0),
            protocol: protocol.to_owned(),
        };
        match bindings {
            None => listed.push(of("", "")),
            Some(bindings) => {
                listed.extend(bindings.iter().map(|bound| of(&bound.host_ip, &bound.host_port)));
            }
        }
    }
    listed.sort();
    listed
}
