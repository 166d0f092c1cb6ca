//! What inspect and list say of a container's networks.

use std::collections::BTreeMap;

use berth_node::sandbox::Meta;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    container::object::Container,
    engine::Engine,
    network::{Network, plan},
    ports::{self, PortBinding, PortSummary},
};

/// Where other programs find the network namespace of the host.
const HOST_NETNS: &str = "/var/run/docker/netns/default";

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

/// What a running container has of its network.
struct Run {
    sandbox_id: String,
    sandbox_key: String,
    endpoint_id: String,
    address: Option<berth_node::network::Endpoint>,
}

fn run(engine: &Engine, container: &Container) -> Option<Run> {
    if !container.state().is_running() {
        return None;
    }
    let sandbox = engine.node.sandboxes.find(&container.id).ok()?;
    let key = sandbox.meta.netns().map(|path| path.display().to_string());
    Some(Run {
        sandbox_id: sandbox_id(&sandbox.meta),
        sandbox_key: key.unwrap_or_else(|| HOST_NETNS.to_owned()),
        endpoint_id: endpoint_id(&sandbox.meta),
        address: sandbox.endpoint().cloned(),
    })
}

/// 32 digits that no other run has.
fn of_run(meta: &Meta) -> String {
    match &meta.netns {
        // It is a UUID behind `cni-`.
        Some(name) => name.chars().skip(4).filter(char::is_ascii_hexdigit).collect(),
        None => format!("{:032x}", meta.created_at),
    }
}

fn sandbox_id(meta: &Meta) -> String {
    of_run(meta) + meta.id.as_str().get(..32).unwrap_or_default()
}

fn endpoint_id(meta: &Meta) -> String {
    meta.id.as_str().get(32..).unwrap_or_default().to_owned() + &of_run(meta)
}

/// All that is known of a container's networks.
pub(crate) fn network_settings(engine: &Engine, container: &Container) -> NetworkSettings {
    let networks = endpoints(engine, container);
    // One that shares another's has none of its own.
    let run = run(engine, container).filter(|_| !networks.is_empty());
    let first = networks.get("bridge").cloned().unwrap_or_default();
    let is_published = run.as_ref().is_some_and(|run| run.address.is_some());
    let (sandbox_id, sandbox_key) =
        run.map(|run| (run.sandbox_id, run.sandbox_key)).unwrap_or_default();
    let ports = match is_published {
        true => {
            let exposed = plan::exposed(&container.record());
            ports::for_inspect(&exposed, &engine.ports.of(&container.id))
        }
        false => BTreeMap::new(),
    };
    NetworkSettings {
        sandbox_id,
        sandbox_key,
        ports,
        endpoint_id: first.endpoint_id,
        gateway: first.gateway,
        ip_address: first.ip_address,
        ip_prefix_len: first.ip_prefix_len,
        mac_address: first.mac_address,
        networks,
        ..NetworkSettings::default()
    }
}

/// Its networks by name. A container that shares another's has none of its own.
pub(crate) fn endpoints(engine: &Engine, container: &Container) -> BTreeMap<String, Endpoint> {
    let record = container.record();
    let mode = record.host_config.network_mode.as_str();
    if mode.starts_with("container:") {
        return BTreeMap::new();
    }
    let run = run(engine, container);
    let network = engine.networks.of_mode(mode).ok().flatten();
    let asked = record.networking.endpoints_config.values().flatten().next().cloned();
    let asked = asked.unwrap_or_default();
    // Until the first start it is only a name.
    let has_begun = run.is_some() || container.state().last.started_at != 0;
    let mut endpoint = Endpoint {
        ipam_config: asked.ipam_config,
        links: asked.links,
        aliases: asked.aliases,
        driver_opts: asked.driver_opts,
        gw_priority: asked.gw_priority.unwrap_or_default(),
        network_id: match network {
            Some(network) if has_begun => network.id.clone(),
            _ => String::new(),
        },
        ..Endpoint::default()
    };
    if let Some(run) = run {
        endpoint.endpoint_id = run.endpoint_id;
        if let Some(address) = run.address {
            endpoint.mac_address = address.mac;
            endpoint.ip_address = address.address.addr().to_string();
            endpoint.ip_prefix_len = address.address.prefix_len();
            endpoint.gateway =
                address.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        }
    }
    let name = network.map_or(mode, |network| network.name.as_str());
    BTreeMap::from([(name.to_owned(), endpoint)])
}

/// The ports of a list.
pub(crate) fn listed_ports(engine: &Engine, container: &Container) -> Vec<PortSummary> {
    match run(engine, container).and_then(|run| run.address) {
        Some(_) => {
            let exposed = plan::exposed(&container.record());
            ports::for_list(&exposed, &engine.ports.of(&container.id))
        }
        None => Vec::new(),
    }
}

/// What a network says of a container that runs on it.
pub(in crate::routes) fn member(
    engine: &Engine,
    container: &Container,
    network: &Network,
) -> Option<Value> {
    let endpoint = endpoints(engine, container).remove(&network.name)?;
    let address = match endpoint.ip_address.as_str() {
        "" => String::new(),
        address => format!("{address}/{}", endpoint.ip_prefix_len),
    };
    (!endpoint.endpoint_id.is_empty()).then(|| {
        json!({
            "Name": container.record().name,
            "EndpointID": endpoint.endpoint_id,
            "MacAddress": endpoint.mac_address,
            "IPv4Address": address,
            "IPv6Address": "",
        })
    })
}
