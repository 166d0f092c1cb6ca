//! The key `ipam`: where addresses come from, and from which ranges the built-in allocator takes
//! them. The format is host-local's.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use berth_cni::{Route, is_identifier};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// Where addresses come from.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) enum Ipam {
    /// The pod gets an interface without addresses.
    #[default]
    None,
    /// `host-local` or `berth-local`: built in.
    Local(Local),
    /// Another IPAM plugin, by its name in CNI_PATH.
    Delegate(String),
}

/// The built-in allocator's configuration.
#[derive(Debug)]
pub(crate) struct Local {
    /// Range sets: the pod gets one address of each.
    pub sets: Vec<Vec<Range>>,
    pub routes: Vec<Route>,
    /// The directory of reservations. By default it is in /run, as no pod survives a reboot.
    pub data_dir: PathBuf,
    /// A file whose name servers and search domains are the pod's.
    pub resolv_conf: Option<PathBuf>,
    /// The lowest free address is given, and not the next one behind that given last. A key of this
    /// plugin only.
    pub lowest_first: bool,
}

/// Addresses to allocate: `start` to `end`, both included, except the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub subnet: IpNet,
    pub start: IpAddr,
    pub end: IpAddr,
    pub gateway: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLocal {
    /// With the three keys below a range set of one range. This is host-local's older form.
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    #[serde(default)]
    ranges: Vec<Vec<RawRange>>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    lowest_first: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawRange {
    // containerd writes the capability `ipRanges` with Go's capital letters.
    #[serde(alias = "Subnet")]
    subnet: IpNet,
    #[serde(alias = "RangeStart", default, deserialize_with = "address")]
    range_start: Option<IpAddr>,
    #[serde(alias = "RangeEnd", default, deserialize_with = "address")]
    range_end: Option<IpAddr>,
    #[serde(alias = "Gateway", default, deserialize_with = "address")]
    gateway: Option<IpAddr>,
}

/// An address, where an empty string means none: Go writes fields that are not set like that.
fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

fn default_data_dir() -> PathBuf {
    "/run/berth/ipam".into()
}

impl TryFrom<Value> for Ipam {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "" => Ok(Self::None),
            // Both names are the built-in allocator. Upstream's host-local is never run: its files
            // are the same, but it does not forget them after a reboot.
            "host-local" | "berth-local" => {
                let raw: RawLocal =
                    serde_json::from_value(value).map_err(|error| format!("ipam: {error}"))?;
                let (range_start, range_end, gateway) =
                    (raw.range_start, raw.range_end, raw.gateway);
                let single = raw
                    .subnet
                    .map(|subnet| vec![RawRange { subnet, range_start, range_end, gateway }]);
                let sets: Result<Vec<_>, _> =
                    single.into_iter().chain(raw.ranges).map(ranges).collect();
                Ok(Self::Local(Local {
                    sets: sets?,
                    routes: raw.routes,
                    data_dir: raw.data_dir,
                    resolv_conf: raw.resolv_conf,
                    lowest_first: raw.lowest_first,
                }))
            }
            // The name is looked up as a file in the directories of CNI_PATH, and must not lead
            // out of them.
            name if is_identifier(name) => Ok(Self::Delegate(kind)),
            name => Err(format!("ipam: \"{name}\" is not the name of a plugin")),
        }
    }
}

/// # Errors
/// A range that does not fit its subnet.
pub(super) fn ranges(raw: Vec<RawRange>) -> Result<Vec<Range>, String> {
    raw.into_iter().map(Range::try_from).collect()
}

impl Local {
    /// # Errors
    /// No range at all, ranges that overlap, or a set of both families.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.sets.is_empty() || self.sets.iter().any(Vec::is_empty) {
            return Err("ipam: no subnet and no ranges to give addresses from".to_owned());
        }
        // As host-local: an address in two ranges would belong to two gateways.
        let all: Vec<&Range> = self.sets.iter().flatten().collect();
        for (index, one) in all.iter().enumerate() {
            if let Some(other) =
                all[..index].iter().find(|other| one.start <= other.end && other.start <= one.end)
            {
                return Err(format!("ipam: the ranges {one} and {other} overlap"));
            }
        }
        match self
            .sets
            .iter()
            .find(|set| set.iter().any(|range| range.start.is_ipv4() != set[0].start.is_ipv4()))
        {
            Some(set) => Err(format!("ipam: a range set mixes IPv4 and IPv6, at {}", set[0])),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.start, self.end)
    }
}

impl Range {
    pub(crate) fn contains(&self, address: &IpAddr) -> bool {
        (self.start..=self.end).contains(address)
    }

    /// How many addresses it has for pods.
    pub(crate) fn capacity(&self) -> u128 {
        number(self.end) - number(self.start) + 1 - u128::from(self.contains(&self.gateway))
    }
}

impl TryFrom<RawRange> for Range {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let subnet = raw.subnet;
        // Two host bits are four addresses: the network, the gateway, one pod, and in IPv4 the
        // broadcast address.
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(format!("subnet {subnet} has no room for a gateway and a pod"));
        }
        // Probably a mistake, and it would not be clear whether the network or the address counts.
        if subnet.addr() != subnet.network() {
            return Err(format!("subnet {subnet} has host bits: {} was meant?", subnet.trunc()));
        }
        let first = plus(subnet.network(), 1);
        // The last address of an IPv4 network is its broadcast address. IPv6 has none.
        let last =
            if subnet.addr().is_ipv4() { plus(subnet.broadcast(), -1) } else { subnet.broadcast() };
        let range = Self {
            subnet,
            start: raw.range_start.unwrap_or(first),
            end: raw.range_end.unwrap_or(last),
            gateway: raw.gateway.unwrap_or(first),
        };
        let outside = [range.start, range.end, range.gateway]
            .into_iter()
            .find(|address| !subnet.contains(address));
        match outside {
            Some(address) => Err(format!("{address} is not in {subnet}")),
            None if range.start > range.end => {
                Err(format!("rangeStart {} is after rangeEnd", range.start))
            }
            None => Ok(range),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address `distance` after this one, or before it when negative, in the same family.
pub(crate) fn plus(address: IpAddr, distance: i8) -> IpAddr {
    let number = number(address).wrapping_add_signed(distance.into());
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}
