//! The configuration of `berth-bridge`: the keys of the upstream bridge plugin, of host-local, and of the capabilities of
//! portmap and bandwidth, which are built in.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use berth_cni::{Attachment, Bandwidth, Error, PortMapping, Route, Success, code, is_identifier};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conf {
    pub cni_version: String,
    pub name: String,
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// Give the bridge the gateway's address.
    #[serde(default)]
    pub is_gateway: bool,
    /// As `isGateway`, and route everything through it.
    #[serde(default)]
    pub is_default_gateway: bool,
    /// Take other addresses off the bridge instead of refusing it.
    #[serde(default)]
    pub force_address: bool,
    #[serde(default)]
    pub ip_masq: bool,
    pub mtu: Option<u32>,
    #[serde(default)]
    pub hairpin_mode: bool,
    #[serde(default)]
    pub promisc_mode: bool,
    /// 0 for none.
    #[serde(default)]
    pub vlan: u16,
    #[serde(default)]
    pub vlan_trunk: Vec<Trunk>,
    /// Leave the port in the bridge's own VLAN too.
    #[serde(default = "yes")]
    pub preserve_default_vlan: bool,
    /// Drop what does not come from the pod's own MAC address.
    #[serde(default)]
    pub macspoofchk: bool,
    /// Let the kernel look for duplicates of IPv6 addresses, and wait for it.
    #[serde(default)]
    pub enabledad: bool,
    /// Leave the pod's interface down and without addresses.
    #[serde(default)]
    pub disable_container_interface: bool,
    /// Pods reach the bridge, not one another.
    #[serde(default)]
    pub port_isolation: bool,
    #[serde(default)]
    pub ipam: Ipam,
    #[serde(default)]
    pub dns: Option<Value>,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default)]
    args: Arguments,
    /// What ADD answered, in a CHECK.
    pub prev_result: Option<Success>,
    /// Who is to stay, in a GC.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<Attachment>,
}

/// VLANs that pass with their tags.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Trunk {
    #[serde(rename = "minID")]
    min: Option<u16>,
    #[serde(rename = "maxID")]
    max: Option<u16>,
    id: Option<u16>,
}

/// What the runtime fills in for the capabilities that a configuration declares.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuntimeConfig {
    pub mac: Option<String>,
    pub ips: Vec<String>,
    ip_ranges: Vec<Vec<RawRange>>,
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Option<Bandwidth>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arguments {
    cni: CniArguments,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArguments {
    mac: Option<String>,
    ips: Vec<String>,
}

/// Where addresses come from.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) enum Ipam {
    /// The pod gets an interface, and somebody else sees to addresses.
    #[default]
    None,
    /// `host-local` or `berth-local`: built in.
    Local(Local),
    /// Another program in CNI_PATH.
    Delegate(String),
}

#[derive(Debug)]
pub(crate) struct Local {
    /// The pod gets an address of each.
    pub sets: Vec<Vec<Range>>,
    pub routes: Vec<Route>,
    /// Where reservations are files; /run, because no pod survives a reboot.
    pub data_dir: PathBuf,
    pub resolv_conf: Option<PathBuf>,
}

/// Addresses to give out: `start` to `end`, but for the gateway.
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
    /// With the three below, a range set of one: the form of before there were sets.
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
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    // Those of containerd begin with a capital.
    #[serde(alias = "Subnet")]
    subnet: IpNet,
    #[serde(alias = "RangeStart", default, deserialize_with = "address")]
    range_start: Option<IpAddr>,
    #[serde(alias = "RangeEnd", default, deserialize_with = "address")]
    range_end: Option<IpAddr>,
    #[serde(alias = "Gateway", default, deserialize_with = "address")]
    gateway: Option<IpAddr>,
}

/// An empty one is none.
fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

fn default_bridge() -> String {
    "berth0".to_owned()
}

fn default_data_dir() -> PathBuf {
    "/run/berth/ipam".into()
}

fn yes() -> bool {
    true
}

impl Conf {
    /// # Errors
    /// Not JSON (code 6), or a value that makes no sense (code 7).
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut conf: Self = serde_json::from_str(text).map_err(|error| {
            let code = if error.is_data() { code::INVALID_CONFIG } else { code::DECODE };
            Error::new(code, format!("configuration: {error}"))
        })?;
        conf.check().map_err(|msg| Error::new(code::INVALID_CONFIG, msg))?;
        Ok(conf)
    }

    fn check(&mut self) -> Result<(), String> {
        // It is part of a rule's comment, of 255 bytes with a container's id.
        if !is_identifier(&self.name) || self.name.len() > 100 {
            return Err(format!("\"{}\" is not a network name", self.name));
        }
        if self.bridge.is_empty() || self.bridge.len() > 15 || !is_identifier(&self.bridge) {
            return Err(format!("\"{}\" is not an interface name", self.bridge));
        }
        if self.hairpin_mode && self.promisc_mode {
            return Err("hairpinMode and promiscMode exclude one another: pods would see packets twice".to_owned());
        }
        if self.vlan > 4094 {
            return Err(format!("vlan {} is not one of 1 to 4094", self.vlan));
        }
        if self.gateway_interface().len() > 15 {
            return Err(format!("{} is too long for the name of an interface", self.gateway_interface()));
        }
        for trunk in &self.vlan_trunk {
            trunk.ids()?;
        }
        if self.disable_container_interface && !matches!(self.ipam, Ipam::None) {
            return Err("disableContainerInterface leaves no place for the addresses of ipam".to_owned());
        }
        if let Some(mapping) = self.runtime_config.port_mappings.iter().find(|mapping| mapping.host_port == 0) {
            return Err(format!("portMappings: containerPort {} has the hostPort 0", mapping.container_port));
        }
        if let Some(bandwidth) = &self.runtime_config.bandwidth {
            check_bandwidth(bandwidth)?;
        }
        if let Ipam::Local(local) = &mut self.ipam {
            let more = std::mem::take(&mut self.runtime_config.ip_ranges);
            let sets: Result<Vec<Vec<Range>>, String> = more.into_iter().map(ranges).collect();
            local.sets.splice(0..0, sets?);
            local.check()?;
        }
        Ok(())
    }

    pub(crate) fn serves_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }

    /// What has the gateways' addresses.
    pub(crate) fn gateway_interface(&self) -> String {
        if self.vlan == 0 { self.bridge.clone() } else { format!("{}.{}", self.bridge, self.vlan) }
    }

    /// The MAC address that the pod is to have: the capability's word before the arguments'.
    pub(crate) fn mac(&self) -> Option<&str> {
        self.runtime_config.mac.as_deref().or(self.args.cni.mac.as_deref())
    }

    /// The addresses that the pod is to have, as `10.1.0.5` or `10.1.0.5/16`.
    ///
    /// # Errors
    /// One that is no address.
    pub(crate) fn wanted(&self, of_environment: Option<&str>) -> Result<Vec<IpAddr>, Error> {
        let texts = self.runtime_config.ips.iter().chain(&self.args.cni.ips).map(String::as_str);
        texts
            .chain(of_environment.into_iter().flat_map(|list| list.split(',')))
            .map(|text| {
                let address = text.split('/').next().unwrap_or_default().trim();
                address
                    .parse()
                    .map_err(|_| Error::new(code::INVALID_CONFIG, format!("ips: \"{text}\" is not an address")))
            })
            .collect()
    }
}

impl Trunk {
    /// First and last.
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

/// As upstream: a rate needs a burst, and a burst is at most what the kernel counts.
fn check_bandwidth(bandwidth: &Bandwidth) -> Result<(), String> {
    for (direction, rate, burst) in [
        ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    ] {
        if (rate == 0) != (burst == 0) {
            return Err(format!("bandwidth: {direction}Rate and {direction}Burst come together"));
        }
        if burst / 8 >= u64::from(u32::MAX) {
            return Err(format!("bandwidth: {direction}Burst {burst} is more than 4 GiB"));
        }
    }
    Ok(())
}

impl TryFrom<Value> for Ipam {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "" => Ok(Self::None),
            "host-local" | "berth-local" => {
                let raw: RawLocal = serde_json::from_value(value).map_err(|error| format!("ipam: {error}"))?;
                let (range_start, range_end, gateway) = (raw.range_start, raw.range_end, raw.gateway);
                let single = raw.subnet.map(|subnet| vec![RawRange { subnet, range_start, range_end, gateway }]);
                let sets: Result<Vec<_>, _> = single.into_iter().chain(raw.ranges).map(ranges).collect();
                Ok(Self::Local(Local {
                    sets: sets?,
                    routes: raw.routes,
                    data_dir: raw.data_dir,
                    resolv_conf: raw.resolv_conf,
                }))
            }
            name if is_identifier(name) => Ok(Self::Delegate(kind)),
            name => Err(format!("ipam: \"{name}\" is not the name of a plugin")),
        }
    }
}

fn ranges(raw: Vec<RawRange>) -> Result<Vec<Range>, String> {
    raw.into_iter().map(Range::try_from).collect()
}

impl Local {
    fn check(&self) -> Result<(), String> {
        if self.sets.is_empty() || self.sets.iter().any(Vec::is_empty) {
            return Err("ipam: no subnet and no ranges to give addresses from".to_owned());
        }
        let all: Vec<&Range> = self.sets.iter().flatten().collect();
        for (index, one) in all.iter().enumerate() {
            if let Some(other) = all[..index].iter().find(|other| one.start <= other.end && other.start <= one.end) {
                return Err(format!("ipam: the ranges {one} and {other} overlap"));
            }
        }
        match self.sets.iter().find(|set| set.iter().any(|range| range.start.is_ipv4() != set[0].start.is_ipv4())) {
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

    /// How many addresses it gives out, as far as that is a number one counts to.
    pub(crate) fn capacity(&self) -> u128 {
        number(self.end) - number(self.start) + 1 - u128::from(self.contains(&self.gateway))
    }
}

impl TryFrom<RawRange> for Range {
    type Error = String;

    fn try_from(raw: RawRange) -> Result<Self, String> {
        let subnet = raw.subnet;
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(format!("subnet {subnet} has no room for a gateway and a pod"));
        }
        if subnet.addr() != subnet.network() {
            return Err(format!("subnet {subnet} has host bits: {} was meant?", subnet.trunc()));
        }
        let first = plus(subnet.network(), 1);
        // The last one of IPv4 is for broadcasts.
        let last = if subnet.addr().is_ipv4() { plus(subnet.broadcast(), -1) } else { subnet.broadcast() };
        let range = Self {
            subnet,
            start: raw.range_start.unwrap_or(first),
            end: raw.range_end.unwrap_or(last),
            gateway: raw.gateway.unwrap_or(first),
        };
        let outside = [range.start, range.end, range.gateway].into_iter().find(|address| !subnet.contains(address));
        match outside {
            Some(address) => Err(format!("{address} is not in {subnet}")),
            None if range.start > range.end => Err(format!("rangeStart {} is after rangeEnd", range.start)),
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

/// The address that is `distance` further, of the same family.
pub(crate) fn plus(address: IpAddr, distance: i8) -> IpAddr {
    let number = number(address).wrapping_add_signed(distance.into());
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(ipam: &str, more: &str) -> Result<Conf, Error> {
        Conf::parse(&format!(r#"{{"cniVersion":"1.1.0","name":"n",{more}"ipam":{ipam}}}"#))
    }

    #[test]
    fn mistakes_are_named() {
        let good = r#"{"type":"berth-local","subnet":"10.1.0.0/24","rangeStart":"10.1.0.9"}"#;
        parse(good, "").unwrap();
        for (ipam, more, what) in [
            (r#"{"type":"../dhcp"}"#, "", "name of a plugin"),
            (r#"{"type":"host-local"}"#, "", "no subnet"),
            (r#"{"type":"host-local","ranges":[[]]}"#, "", "no subnet"),
            (r#"{"type":"host-local","subnet":"10.1.0.0/31"}"#, "", "no room"),
            (r#"{"type":"host-local","subnet":"10.1.0.7/24"}"#, "", "10.1.0.0/24 was meant"),
            (r#"{"type":"host-local","subnet":"10.1.0.0/24","gateway":"10.2.0.1"}"#, "", "10.2.0.1"),
            (
                r#"{"type":"host-local","subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.3"}"#,
                "",
                "after",
            ),
            (
                r#"{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/16"}]]}"#,
                "",
                "overlap",
            ),
            (r#"{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]}"#, "", "mixes"),
            (r#"{"type":"host-local","ranges":[[{"subnet":"10.1.0"}]]}"#, "", "invalid"),
            (good, r#""bridge":"a/b","#, "interface name"),
            (good, r#""bridge":"a-name-that-is-too-long","#, "interface name"),
            (good, r#""hairpinMode":true,"promiscMode":true,"#, "exclude"),
            (good, r#""vlan":4095,"#, "vlan"),
            (good, r#""vlanTrunk":[{"minID":5}],"#, "minID"),
            (good, r#""vlanTrunk":[{"minID":5,"maxID":4}],"#, "within"),
            (good, r#""disableContainerInterface":true,"#, "no place"),
            (good, r#""runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":1}]},"#, "hostPort 0"),
            (good, r#""runtimeConfig":{"bandwidth":{"ingressRate":1}},"#, "come together"),
        ] {
            let error = parse(ipam, more).unwrap_err();
            assert!(error.msg.contains(what), "{ipam} {more}: {}", error.msg);
        }
    }

    #[test]
    fn ranges_of_the_runtime_come_first_and_both_families_are_served() {
        let more = r#""runtimeConfig":{"ipRanges":[[{"Subnet":"10.9.0.0/24","RangeStart":""}]]},"#;
        let conf = parse(r#"{"type":"host-local","ranges":[[{"subnet":"fd00::/64"}]]}"#, more).unwrap();
        let Ipam::Local(local) = conf.ipam else { panic!("not local") };
        let texts: Vec<String> = local.sets.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.9.0.1 to 10.9.0.254", "fd00::1 to fd00::ffff:ffff:ffff:ffff"]);
        assert_eq!(local.sets[0][0].capacity(), 253);
    }

    #[test]
    fn another_ipam_is_not_read() {
        let conf = parse(r#"{"type":"calico-ipam","subnet":"usePodCidr"}"#, "").unwrap();
        assert!(matches!(conf.ipam, Ipam::Delegate(name) if name == "calico-ipam"));
    }
}
