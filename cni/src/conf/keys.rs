//! The keys that a network configuration may have, and what the runtime adds to them for one call.

use std::net::IpAddr;

use berth_cni::{Attachment, Bandwidth, Error, PortMapping, Success, code};
use serde::Deserialize;
use serde_json::Value;

use super::ipam::{Ipam, RawRange};

/// The configuration of one call, checked. Keys of other plugins and of newer versions are passed
/// over, as everywhere in CNI.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conf {
    pub cni_version: String,
    pub name: String,
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// The bridge has the gateway's address.
    #[serde(default)]
    pub is_gateway: bool,
    /// As `isGateway`, and the pod's default routes go through it.
    #[serde(default)]
    pub is_default_gateway: bool,
    /// Other addresses are taken off the bridge; without this key they are an error.
    #[serde(default)]
    pub force_address: bool,
    /// Packets that leave the pods' network get the host's address as their source.
    #[serde(default)]
    pub ip_masq: bool,
    pub mtu: Option<u32>,
    /// The port may send back what came in through it (hairpin mode of the bridge).
    #[serde(default)]
    pub hairpin_mode: bool,
    /// The bridge is in promiscuous mode.
    #[serde(default)]
    pub promisc_mode: bool,
    /// The VLAN of packets without a tag, 1 to 4094; 0 for none.
    #[serde(default)]
    pub vlan: u16,
    /// The VLANs whose packets keep their tags.
    #[serde(default)]
    pub vlan_trunk: Vec<Trunk>,
    /// The port stays in the bridge's default VLAN, 1, besides `vlan` and `vlanTrunk`.
    #[serde(default = "yes")]
    pub preserve_default_vlan: bool,
    /// Frames from any other MAC address than the pod's own are dropped.
    #[serde(default)]
    pub macspoofchk: bool,
    /// IPv6 addresses go through duplicate address detection (RFC 4862), and ADD waits for its end.
    #[serde(default)]
    pub enabledad: bool,
    /// The pod's interface stays down and without addresses.
    #[serde(default)]
    pub disable_container_interface: bool,
    /// Ports are isolated: pods reach the host, and not one another.
    #[serde(default)]
    pub port_isolation: bool,
    #[serde(default)]
    pub isolation: Isolation,
    #[serde(default)]
    pub ipam: Ipam,
    #[serde(default)]
    pub dns: Option<Value>,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default)]
    args: Arguments,
    /// The result of ADD, which CHECK and DEL get back.
    pub prev_result: Option<Success>,
    /// Which attachments a GC leaves alone.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<Attachment>,
}

/// From whom a network is kept apart on this machine. A key of this plugin only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Isolation {
    #[default]
    None,
    /// From other networks with any isolation.
    Bridges,
    /// Also from whoever else the host forwards for: only mapped ports lead into it.
    Closed,
    /// Nothing enters or leaves it, but for the host itself.
    Internal,
}

/// VLANs whose packets pass with their tags: `id` alone, or `minID` and `maxID`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Trunk {
    #[serde(rename = "minID")]
    min: Option<u16>,
    #[serde(rename = "maxID")]
    max: Option<u16>,
    id: Option<u16>,
}

/// What the runtime says of one pod, for the capabilities that the configuration declares (CNI's
/// CONVENTIONS.md).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuntimeConfig {
    pub mac: Option<String>,
    pub ips: Vec<String>,
    /// Range sets that come before those of `ipam`.
    pub(super) ip_ranges: Vec<Vec<RawRange>>,
    /// `None` when the runtime does not say, as in the DEL of some runtimes.
    pub port_mappings: Option<Vec<PortMapping>>,
    pub bandwidth: Option<Bandwidth>,
}

/// `args.cni`: what whoever wrote the configuration wants of the interface.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Arguments {
    cni: CniArguments,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArguments {
    mac: Option<String>,
    ips: Vec<String>,
}

fn default_bridge() -> String {
    "berth0".to_owned()
}

fn yes() -> bool {
    true
}

impl Conf {
    /// The ports of the host that lead to the pod.
    pub(crate) fn port_mappings(&self) -> &[PortMapping] {
        self.runtime_config.port_mappings.as_deref().unwrap_or_default()
    }

    /// Whether the host is the gateway of the pods.
    pub(crate) fn serves_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }

    /// The interface that has the gateways' addresses: the bridge, or `BRIDGE.VLAN` above it.
    pub(crate) fn gateway_interface(&self) -> String {
        if self.vlan == 0 { self.bridge.clone() } else { format!("{}.{}", self.bridge, self.vlan) }
    }

    /// The MAC address that the pod must have. The capability `mac` wins over `args`.
    pub(crate) fn mac(&self) -> Option<&str> {
        self.runtime_config.mac.as_deref().or(self.args.cni.mac.as_deref())
    }

    /// The addresses that the pod must have, written as `10.1.0.5` or `10.1.0.5/16`: those of the
    /// capability `ips`, of `args`, and of CNI_ARGS.
    ///
    /// # Errors
    /// A text that is not an address.
    pub(crate) fn requested_ips(&self, of_environment: Option<&str>) -> Result<Vec<IpAddr>, Error> {
        let texts = self.runtime_config.ips.iter().chain(&self.args.cni.ips).map(String::as_str);
        texts
            .chain(of_environment.into_iter().flat_map(|list| list.split(',')))
            .map(|text| {
                let address = text.split('/').next().unwrap_or_default().trim();
                address.parse().map_err(|_| {
                    Error::new(code::INVALID_CONFIG, format!("ips: \"{text}\" is not an address"))
                })
            })
            .collect()
    }
}

impl Trunk {
    /// The first and the last VLAN of the range.
    ///
    /// # Errors
    /// Neither form, or a range outside 1 to 4094.
    pub(crate) fn ids(&self) -> Result<(u16, u16), String> {
        let (first, last) = match (self.id, self.min, self.max) {
            (Some(id), None, None) => (id, id),
            (None, Some(min), Some(max)) => (min, max),
            _ => return Err("vlanTrunk: either id, or minID and maxID".to_owned()),
        };
        match 1 <= first && first <= last && last <= 4094 {
            true => Ok((first, last)),
            false => Err(format!("vlanTrunk: {first} to {last} is not within 1 to 4094")),
        }
    }
}
