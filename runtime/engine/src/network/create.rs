//! The making of a network: what a request may ask for, in dockerd's words, and the subnets it gets.

use std::{collections::BTreeMap, fs, net::IpAddr};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    clock::now,
    id,
    observe::{self, steps::docker_network},
};
use http::StatusCode;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    object::{Custom, Driver, Network, Pool, Wish, parse_bool},
    pools,
};
use crate::{
    api::json,
    engine::Engine,
    http::error::{Failure, Result},
};

/// The body of `POST /networks/create`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Request {
    pub name: String,
    driver: Option<String>,
    scope: Option<String>,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Option<Ipam>,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    config_from: Option<Value>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Ipam {
    driver: Option<String>,
    options: Option<BTreeMap<String, String>>,
    config: Option<Vec<IpamConfig>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct IpamConfig {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
    auxiliary_addresses: Option<BTreeMap<String, String>>,
}

impl Request {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 in dockerd's words.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let mut fields = json::object(body, "network.CreateRequest")?;
        Ok(json::fields(&mut fields, "CreateRequest")?)
    }
}

fn forbidden(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, message)
}

fn unserved(what: &str) -> Failure {
    Failure::new(StatusCode::NOT_IMPLEMENTED, format!("{what} are not served"))
}

impl Engine {
    /// Makes a network with its bridge. It is on record once this has returned.
    ///
    /// # Errors
    /// As dockerd: 400, 403, 404 and 409 for what cannot be; what the kernel says, and then nothing is
    /// left.
    pub(crate) async fn make_network(&self, request: Request) -> Result<String> {
        if request.name.trim().is_empty() {
            return Err(Failure::bad_request("invalid name: name is empty"));
        }
        let _changing = self.networks.changing.lock().await;
        let all = self.networks.all();
        let same = all.iter().find(|network| network.name == request.name);
        if request.name == "default" || same.is_some_and(|network| !network.is_custom()) {
            return Err(forbidden(format!(
                "operation is not permitted on predefined {} network ",
                request.name
            )));
        }
        if same.is_some() {
            return Err(Failure::conflict(format!(
                "network with name {} already exists",
                request.name
            )));
        }
        check_driver(&request)?;
        let (has_ipv4, has_ipv6) = families(&request)?;
        let asked = pools_of(&request, has_ipv4, has_ipv6)?;
        check_options(&request)?;
        let network = Network {
            id: id::random_hex(32),
            created_at: now(),
            driver: Driver::Bridge,
            pools: allocate(asked, has_ipv4, has_ipv6, &all)?,
            subnet: None,
            custom: Some(Custom {
                internal: request.internal,
                attachable: request.attachable,
                ipv4: has_ipv4,
                ipv6: has_ipv6,
                options: request.options.unwrap_or_default(),
                labels: request.labels.unwrap_or_default(),
                ipam_options: request.ipam.and_then(|ipam| ipam.options),
            }),
            name: request.name,
        };
        let interface = network.interface();
        if let Some(other) =
            all.iter().find(|it| it.driver == Driver::Bridge && it.interface() == interface)
        {
            return Err(forbidden(format!(
                "cannot create network {} ({interface}): conflicts with network {} ({interface}): \
                 networks have same bridge name",
                network.id, other.id
            )));
        }
        // Its removal deletes the bridge, which must be nobody else's.
        if is_interface(&interface)? {
            return Err(forbidden(format!(
                "the interface {interface} exists already, and a network makes a bridge of its own"
            )));
        }
        let id = network.id.clone();
        observe::before(docker_network::RECORD)?;
        self.networks.insert(network.clone())?;
        let bridge = network.bridge(Wish::default());
        let made = match observe::before(docker_network::BRIDGE) {
            Ok(()) => self.node.host.networks.make_bridge(&bridge).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            self.networks.close(&network);
            if let Err(error) = self.node.host.networks.remove_bridge(&bridge).await {
                tracing::warn!(network = network.name, "left of a network: {error:#}");
            }
            self.networks.forget(&network)?;
            return Err(error.into());
        }
        self.publish_of_network(&network, "create", Map::new());
        Ok(id)
    }
}

/// Whether this machine has an interface of this name.
fn is_interface(name: &str) -> anyhow::Result<bool> {
    let text = blocking(|| fs::read_to_string("/proc/net/dev")).context("read the interfaces")?;
    let mut names = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    Ok(names.any(|it| it == name))
}

fn check_driver(request: &Request) -> Result<()> {
    if request.scope.as_deref() == Some("swarm") {
        return Err(forbidden("cannot create a swarm scoped network when swarm is not active"));
    }
    if request.ingress
        || request.config_only
        || request.config_from.as_ref().is_some_and(|from| {
            from.get("Network").and_then(Value::as_str).is_some_and(|name| !name.is_empty())
        })
    {
        return Err(unserved("ingress networks, and networks for configuration only,"));
    }
    match request.driver.as_deref().unwrap_or_default() {
        "" | "bridge" => Ok(()),
        "overlay" => Err(forbidden(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
             to connect this node to swarm and try again.",
        )),
        name @ ("host" | "null") => {
            Err(forbidden(format!("only one instance of \"{name}\" network is allowed")))
        }
        name @ ("macvlan" | "ipvlan") => Err(unserved(&format!("networks of driver {name}"))),
        name => Err(Failure::not_found(format!("plugin \"{name}\" not found"))),
    }
}

/// Whether a network has IPv4 and IPv6: by the request's own fields, else by its options, as files of
/// compose have them.
///
/// # Errors
/// 400 for an option that is neither true nor false, and for neither of the two.
fn families(request: &Request) -> Result<(bool, bool)> {
    let option = |key: &str| match request.options.iter().flatten().find(|(name, _)| *name == key) {
        None => Ok(None),
        Some((_, value)) => parse_bool(value).map(Some).ok_or_else(|| {
            Failure::bad_request(format!("driver-opt \"{key}\" is not a valid bool"))
        }),
    };
    let has = |field: Option<bool>, key, default| match field {
        Some(given) => Ok(given),
        None => option(key).map(|given| given.unwrap_or(default)),
    };
    match (
        has(request.enable_ipv4, "com.docker.network.enable_ipv4", true)?,
        has(request.enable_ipv6, "com.docker.network.enable_ipv6", false)?,
    ) {
        (false, false) => Err(Failure::bad_request("IPv4 or IPv6 must be enabled")),
        both => Ok(both),
    }
}

/// The subnets of a request, of the families that the network has.
///
/// # Errors
/// 400 with all that is wrong with them; 404 for the IPAM driver.
fn pools_of(request: &Request, has_ipv4: bool, has_ipv6: bool) -> Result<Vec<Pool>> {
    let mut pools = Vec::new();
    let mut wrong = Vec::new();
    let configs = request.ipam.iter().flat_map(|ipam| ipam.config.iter().flatten());
    for config in configs {
        match config.subnet.parse::<IpNet>() {
            Err(_) => {
                wrong.push(format!("invalid subnet {}: invalid CIDR block notation", config.subnet))
            }
            // As dockerd: what is not wanted is not looked at.
            Ok(IpNet::V6(_)) if !has_ipv6 => {}
            Ok(subnet) => pools.extend(pool(config, subnet, &mut wrong)),
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::bad_request(format!("invalid network config:\n{}", join(&wrong))));
    }
    let driver = request.ipam.as_ref().and_then(|ipam| ipam.driver.as_deref()).unwrap_or_default();
    if !["", "default"].contains(&driver) {
        return Err(Failure::not_found(format!("plugin \"{driver}\" not found")));
    }
    pools.retain(|pool| has_ipv4 || !pool.subnet.addr().is_ipv4());
    Ok(pools)
}

/// Several errors as one, as dockerd writes them.
pub(crate) fn join(wrong: &[String]) -> String {
    match wrong {
        [one] => one.trim().to_owned(),
        several => format!("* {}", several.join("\n* ")),
    }
}

fn pool(config: &IpamConfig, subnet: IpNet, wrong: &mut Vec<String>) -> Option<Pool> {
    let before = wrong.len();
    if subnet != subnet.trunc() {
        wrong.push(format!("invalid subnet {subnet}: it should be {}", subnet.trunc()));
    }
    let range = range(&config.ip_range, subnet, wrong);
    let gateway = address("gateway", &config.gateway, &config.gateway, subnet, wrong);
    let mut auxiliary = BTreeMap::new();
    for (name, text) in config.auxiliary_addresses.iter().flatten() {
        let address = address("auxiliary address", name, text, subnet, wrong);
        auxiliary.extend(address.map(|address| (name.clone(), address)));
    }
    (wrong.len() == before).then(|| Pool {
        subnet,
        gateway: gateway.unwrap_or_else(|| first(range.unwrap_or(subnet), subnet, &auxiliary)),
        range,
        auxiliary,
        is_chosen: true,
        shows_gateway: gateway.is_some(),
    })
}

fn family(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

fn range(text: &str, subnet: IpNet, wrong: &mut Vec<String>) -> Option<IpNet> {
    if text.is_empty() {
        return None;
    }
    let mut refuse = |why: String| wrong.push(format!("invalid ip-range {text}: {why}"));
    let Ok(range) = text.parse::<IpNet>() else {
        refuse("invalid CIDR block notation".to_owned());
        return None;
    };
    if family(range) != family(subnet) {
        refuse(format!("parent subnet is an {} block", family(subnet)));
        return None;
    }
    if range.prefix_len() < subnet.prefix_len() {
        refuse(format!("CIDR block is bigger than its parent subnet {subnet}"));
    }
    if range != range.trunc() {
        refuse(format!("it should be {}", range.trunc()));
    }
    if !pools::overlap(&range, &subnet) {
        refuse(format!("parent subnet {subnet} doesn't contain ip-range"));
    }
    Some(range)
}

fn address(
    what: &str,
    name: &str,
    text: &str,
    subnet: IpNet,
    wrong: &mut Vec<String>,
) -> Option<IpAddr> {
    if text.is_empty() {
        return None;
    }
    let mut refuse = |why: String| wrong.push(format!("invalid {what} {name}: {why}"));
    let Ok(address) = text.parse::<IpAddr>() else {
        refuse("invalid address".to_owned());
        return None;
    };
    if address.is_ipv4() != subnet.addr().is_ipv4() {
        refuse(format!("parent subnet is an {} block", family(subnet)));
        return None;
    }
    if !subnet.contains(&address) {
        refuse(format!("parent subnet {subnet} doesn't contain this address"));
    }
    Some(address)
}

/// The first address of a range that is free for a gateway.
fn first(range: IpNet, subnet: IpNet, auxiliary: &BTreeMap<String, IpAddr>) -> IpAddr {
    let is_free = |address: &IpAddr| {
        *address != subnet.network() && !auxiliary.values().any(|taken| taken == address)
    };
    let mut candidates: Box<dyn Iterator<Item = IpAddr>> = match range {
        IpNet::V4(range) => Box::new(
            (u32::from(range.network())..=u32::from(range.broadcast()))
                .map(|number| IpAddr::V4(number.into())),
        ),
        IpNet::V6(range) => Box::new(
            (u128::from(range.network())..=u128::from(range.broadcast()))
                .map(|number| IpAddr::V6(number.into())),
        ),
    };
    candidates.find(is_free).unwrap_or_else(|| subnet.network())
}

/// Options whose values are looked at; others are kept, as by dockerd.
fn check_options(request: &Request) -> Result<()> {
    for (key, value) in request.options.iter().flatten() {
        let unparsed = |why: &str| {
            Failure::bad_request(format!("failed to parse {key} value: {value} ({why})"))
        };
        let syntax = |go: &str| unparsed(&format!("{go}: parsing {value:?}: invalid syntax"));
        match key.strip_prefix("com.docker.network.").unwrap_or_default() {
            "bridge.enable_icc" | "bridge.enable_ip_masquerade" => {
                parse_bool(value).ok_or_else(|| syntax("strconv.ParseBool"))?;
            }
            "driver.mtu" => {
                value.parse::<u32>().map_err(|_| syntax("strconv.Atoi"))?;
            }
            "bridge.host_binding_ipv4" => {
                value.parse::<IpAddr>().map_err(|_| unparsed("nil ip"))?;
            }
            // The kernel's IFNAMSIZ.
            "bridge.name" if value.len() > 15 || value.contains(['/', ' ']) => {
                let text =
                    format!("{value:?} is no name of an interface, which has up to 15 bytes");
                return Err(Failure::bad_request(text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The subnets that a network gets: those that were asked for, which must be nobody's, and one for each
/// of its families for which none was.
fn allocate(
    mut pools: Vec<Pool>,
    wants_ipv4: bool,
    wants_ipv6: bool,
    all: &[std::sync::Arc<Network>],
) -> Result<Vec<Pool>> {
    let others = || all.iter().flat_map(|network| &network.pools);
    for (index, pool) in pools.iter().enumerate() {
        let same = pools[..index].iter().chain(others());
        if same.into_iter().any(|other| pools::overlap(&pool.subnet, &other.subnet)) {
            return Err(forbidden(
                "invalid pool request: Pool overlaps with other one on this address space",
            ));
        }
        if pool.subnet.prefix_len() > pool.subnet.max_prefix_len() - 2 {
            return Err(Failure::bad_request(format!(
                "subnet {} has no room for a gateway and a container",
                pool.subnet
            )));
        }
    }
    if wants_ipv4 && !pools.iter().any(|pool| pool.subnet.addr().is_ipv4()) {
        let routes = pools::routes().map_err(|error| {
            Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("read the routes of this machine: {error}"),
            )
        })?;
        let taken = pools::taken(all.iter().map(AsRef::as_ref));
        let chosen = pools::choose(None, "", &routes, &taken)?;
        pools.insert(0, Pool::new(chosen.trunc(), chosen.addr()));
    }
    if wants_ipv6 && !pools.iter().any(|pool| pool.subnet.addr().is_ipv6()) {
        pools.push(unique_local());
    }
    Ok(pools)
}

/// A subnet of addresses that are only used here (RFC 4193): 40 random bits keep it apart from those of
/// other machines.
fn unique_local() -> Pool {
    let random = u128::from_str_radix(&id::random_hex(5), 16).unwrap_or_default();
    let network = (0xfd << 120) | (random << 80);
    let subnet = IpNet::new_assert(IpAddr::V6(network.into()), 64);
    Pool::new(subnet, IpAddr::V6((network | 1).into()))
}
