//! A network: what was asked for, and the addresses that it has.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use berth_node::network::{Bridge, Subnet};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The interface of the network `bridge`.
pub(crate) const BRIDGE: &str = "docker0";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    Bridge,
    Host,
    Null,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        })
    }
}

/// The record of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub driver: Driver,
    /// Of a bridge.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// The only pool, as it was written before users could make networks.
    #[serde(default, skip_serializing)]
    pub subnet: Option<IpNet>,
    /// Of one that a user has made.
    #[serde(default)]
    pub custom: Option<Custom>,
}

/// A subnet of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub subnet: IpNet,
    pub gateway: IpAddr,
    /// The part whose addresses are given to those who ask for none.
    pub range: Option<IpNet>,
    /// Addresses of others, which are never given, by their names.
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Whether a user has chosen the subnet: only then addresses in it may be asked for.
    pub is_chosen: bool,
    /// Whether inspect shows the gateway: not if a user has chosen the subnet without one.
    pub shows_gateway: bool,
}

/// What a user has asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Custom {
    pub internal: bool,
    pub attachable: bool,
    #[serde(default = "yes")]
    pub ipv4: bool,
    pub ipv6: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The options of its IPAM, which inspect gives back.
    pub ipam_options: Option<BTreeMap<String, String>>,
}

/// Records from before networks without it say nothing of IPv4.
fn yes() -> bool {
    true
}

/// What a container wants of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The name of its interface.
    pub inside: String,
    pub is_default: bool,
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
}

impl Pool {
    pub(crate) fn new(subnet: IpNet, gateway: IpAddr) -> Self {
        Self {
            subnet,
            gateway,
            range: None,
            auxiliary: BTreeMap::new(),
            is_chosen: false,
            shows_gateway: true,
        }
    }
}

impl Network {
    pub(crate) fn is_custom(&self) -> bool {
        self.custom.is_some()
    }

    /// The first gateway in IPv4, which is the host's address for containers.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.pools.iter().map(|pool| pool.gateway).find(IpAddr::is_ipv4)
    }

    /// The address of the host at which ports are published that name none; `None` for all.
    pub(crate) fn host_binding(&self) -> Option<IpAddr> {
        let text = self.custom.as_ref()?.options.get("com.docker.network.bridge.host_binding_ipv4");
        text?.parse().ok().filter(|address: &IpAddr| *address != Ipv4Addr::UNSPECIFIED)
    }

    /// The name of the interface.
    pub(crate) fn interface(&self) -> String {
        match &self.custom {
            None => BRIDGE.to_owned(),
            Some(custom) => match custom.options.get("com.docker.network.bridge.name") {
                Some(name) if !name.is_empty() => name.clone(),
                _ => format!("br-{}", &self.id[..12]),
            },
        }
    }

    /// The bridge, for a container with this wish.
    pub(crate) fn bridge(&self, wish: Wish) -> Bridge {
        let none = Custom::default();
        let custom = self.custom.as_ref().unwrap_or(&none);
        let flag = |name: &str| {
            custom.options.get(name).is_none_or(|value| parse_bool(value) != Some(false))
        };
        Bridge {
            inside: wish.inside,
            network: self.id.clone(),
            interface: self.interface(),
            subnets: self.pools.iter().map(subnet).collect(),
            internal: custom.internal,
            masquerades: flag("com.docker.network.bridge.enable_ip_masquerade"),
            isolates_ports: !flag("com.docker.network.bridge.enable_icc"),
            mtu: custom
                .options
                .get("com.docker.network.driver.mtu")
                .and_then(|mtu| mtu.parse().ok()),
            is_default: wish.is_default,
            addresses: wish.addresses,
            mac: wish.mac,
        }
    }
}

fn subnet(pool: &Pool) -> Subnet {
    Subnet {
        range: pool.range,
        reserved: pool.auxiliary.values().copied().collect(),
        ..Subnet::new(pool.subnet, pool.gateway)
    }
}

/// As Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
