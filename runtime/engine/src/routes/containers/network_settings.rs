//! What inspect and list say of a container's networks.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use berth_node::sandbox::{Meta, Sandbox};
use serde::Serialize;
use serde_json::Value;

use crate::{
    container::object::Container,
    engine::Engine,
    network::{
        Driver, Network,
        endpoints::{self, Wanted},
        members, plan,
    },
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

/// The run of a container, if it runs.
fn run(engine: &Engine, container: &Container) -> Option<Arc<Sandbox>> {
    match container.state().is_running() {
        true => engine.node.sandboxes.find(&container.id).ok(),
        false => None,
    }
}

/// 64 digits that no other run has.
fn sandbox_id(meta: &Meta) -> String {
    let of_run: String = match &meta.netns {
        // It is a UUID behind `cni-`.
        Some(name) => name.chars().skip(4).filter(char::is_ascii_hexdigit).collect(),
        None => format!("{:032x}", meta.created_at),
    };
    of_run + meta.id.as_str().get(..32).unwrap_or_default()
}

fn sandbox_key(meta: &Meta) -> String {
    meta.netns().map_or_else(|| HOST_NETNS.to_owned(), |path| path.display().to_string())
}

/// All that is known of a container's networks.
pub(crate) fn network_settings(engine: &Engine, container: &Container) -> NetworkSettings {
    let networks = endpoints(engine, container);
    // One that shares another's has none of its own.
    let run = run(engine, container)
        .filter(|_| !container.record().host_config.network_mode.starts_with("container:"));
    let first = networks.get("bridge").cloned().unwrap_or_default();
    let is_published = run.as_ref().is_some_and(|run| !run.endpoints().is_empty());
    let (sandbox_id, sandbox_key) =
        run.map(|run| (sandbox_id(&run.meta), sandbox_key(&run.meta))).unwrap_or_default();
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
    let run = run(engine, container);
    // Until the first start it is only a name.
    let has_begun = run.is_some() || container.state().last.started_at != 0;
    let wanted = endpoints::wanted(&record).into_iter();
    wanted
        .map(|Wanted { name, settings }| {
            let network = engine.networks.find(&name).ok();
            let of_run = run.as_ref().zip(network.as_ref());
            let mut endpoint = Endpoint {
                ipam_config: settings.ipam_config.clone(),
                links: settings.links.clone(),
                aliases: settings.aliases.clone(),
                driver_opts: settings.driver_opts.clone(),
                gw_priority: settings.gw_priority.unwrap_or_default(),
                ..Endpoint::default()
            };
            if let Some(network) = network.as_ref().filter(|_| has_begun) {
                endpoint.network_id.clone_from(&network.id);
                let has_names = network.is_custom();
                endpoint.dns_names = has_names.then(|| endpoints::names(&record, &settings));
            }
            if let Some((run, network)) = of_run {
                endpoint.fill(run, network);
            }
            (network.map_or(name, |network| network.name.clone()), endpoint)
        })
        .collect()
}

impl Endpoint {
    /// Adds what a run has of its network.
    fn fill(&mut self, run: &Sandbox, network: &Network) {
        let interface = run.endpoints().into_iter().find(|it| it.network == network.id);
        let Some(interface) = interface else {
            // That of the host and `none` have no interface.
            if network.driver != Driver::Bridge {
                self.endpoint_id = members::endpoint_id(run, "");
            }
            return;
        };
        self.endpoint_id = members::endpoint_id(run, &interface.interface);
        let gateway =
            |gateway: Option<IpAddr>| gateway.map(|it| it.to_string()).unwrap_or_default();
        if let Some((address, via)) = interface.ipv4 {
            self.ip_address = address.addr().to_string();
            self.ip_prefix_len = address.prefix_len();
            self.gateway = gateway(via);
        }
        if let Some((address, via)) = interface.ipv6 {
            self.global_ipv6_address = address.addr().to_string();
            self.global_ipv6_prefix_len = address.prefix_len();
            self.ipv6_gateway = gateway(via);
        }
        self.mac_address = interface.mac;
    }
}

/// As `endpoints`, with what a list has of them.
pub(crate) fn listed_endpoints(
    engine: &Engine,
    container: &Container,
) -> BTreeMap<String, Endpoint> {
    let mut endpoints = endpoints(engine, container);
    for endpoint in endpoints.values_mut() {
        (endpoint.aliases, endpoint.dns_names) = (None, None);
    }
    endpoints
}

/// The ports of a list.
pub(crate) fn listed_ports(engine: &Engine, container: &Container) -> Vec<PortSummary> {
    match run(engine, container).filter(|run| !run.endpoints().is_empty()) {
        Some(_) => {
            let exposed = plan::exposed(&container.record());
            ports::for_list(&exposed, &engine.ports.of(&container.id))
        }
        None => Vec::new(),
    }
}
