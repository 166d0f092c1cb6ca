//! The Container Network Interface (CNI), version 1.1.0, as types: what a plugin reads and prints.
//!
//! berthd reads the results and errors of any plugin with these types, and `berth-bridge` writes
//! them. There is no I/O here. The specification is SPEC.md of containernetworking/cni.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the specification that berth writes, and the newest that it reads.
pub const VERSION: &str = "1.1.0";

/// Error codes. Those below 100 are the specification's (section "Error"), those from 100 on are
/// `berth-bridge`'s.
pub mod code {
    /// The plugin does not know the `cniVersion` of the configuration.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The container, or its network namespace, does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_` variable is missing or invalid.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A file cannot be read or written, or a program cannot be run.
    pub const IO: u32 = 5;
    /// The configuration is not JSON.
    pub const DECODE: u32 = 6;
    /// The configuration has a value that cannot be.
    pub const INVALID_CONFIG: u32 = 7;
    /// STATUS: the plugin cannot serve an ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: as above, and pods that run may have lost their network.
    pub const LIMITED: u32 = 51;
    /// The kernel refused a request.
    pub const KERNEL: u32 = 100;
    /// All addresses of a range set are in use.
    pub const EXHAUSTED: u32 = 101;
    /// CHECK found something other than what ADD made.
    pub const DRIFT: u32 = 102;
    /// A port of the host, or a requested address, belongs to somebody else.
    pub const IN_USE: u32 = 103;
}

/// The result of ADD, which CHECK and DEL get back as `prevResult`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Success {
    #[serde(default)]
    pub cni_version: String,
    /// The interfaces that the plugins made, on the host and in the pod.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The pod's addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// The pod's routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// `nameservers`, `domain`, `search` and `options`.
    #[serde(default)]
    pub dns: Value,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default)]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace that the interface is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Index into `interfaces` of the one that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the prefix length of its network.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Other keys, as `mtu`, `advmss` and `scope`. They are not used here, and are passed on, so
    /// that the result that a chained plugin gets is complete.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl Route {
    /// The default route of the gateway's family.
    pub fn default_through(gateway: IpAddr) -> Self {
        let any: IpAddr = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            dst: IpNet::new_assert(any, 0),
            gw: Some(gateway),
            priority: None,
            table: None,
            others: BTreeMap::new(),
        }
    }
}

/// The capability `portMappings`: a port of the host that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    // containerd writes these keys with Go's capital letters: Go's decoder ignores case.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    #[serde(alias = "Protocol", default)]
    pub protocol: Protocol,
    /// An address of the host; empty for all, `0.0.0.0` or `::` for all of one family.
    #[serde(
        rename = "hostIP",
        alias = "HostIP",
        skip_serializing_if = "String::is_empty",
        default
    )]
    pub host_ip: String,
}

/// The protocol of a port. Its text is the one that nft(8) and the kubelet use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    #[serde(alias = "TCP")]
    Tcp,
    #[serde(alias = "UDP")]
    Udp,
    #[serde(alias = "SCTP")]
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// The capability `bandwidth`: rates in bits per second and bursts in bits; 0 for no limit. Ingress
/// is what the pod receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// What a plugin prints when it fails; its exit status is then not 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    #[serde(default)]
    pub cni_version: String,
    pub code: u32,
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error of this plugin, in the newest version.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { cni_version: VERSION.to_owned(), code, msg: msg.into(), details: String::new() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for Error {}

/// An interface of a container on a network: what ADD makes and DEL removes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// A network configuration: a list of plugins that ADD runs in order and DEL in reverse order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfList {
    pub name: String,
    pub cni_version: String,
    /// Further versions that the configuration is good for.
    #[serde(default)]
    pub cni_versions: Vec<String>,
    /// The runtime does not call CHECK.
    #[serde(default)]
    pub disable_check: bool,
    /// The runtime does not call GC.
    #[serde(default, rename = "disableGC")]
    pub disable_gc: bool,
    /// The configuration of each plugin, by key. Only `type` is read here.
    pub plugins: Vec<BTreeMap<String, Value>>,
}

impl ConfList {
    /// Parses a `*.conflist`, or a `*.conf` or `*.json`, which has a single plugin and is read as a
    /// list of one.
    ///
    /// # Errors
    /// It is not JSON, lacks a required key, has a name that does not match
    /// `[a-zA-Z0-9][-_.a-zA-Z0-9]*`, or has a plugin without `type`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: BTreeMap<String, Value> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut list: Self = if value.contains_key("plugins") {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            let text =
                |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let cni_versions =
                value.get("cniVersions").cloned().map(serde_json::from_value).transpose();
            Self {
                name: text("name"),
                cni_version: text("cniVersion"),
                cni_versions: cni_versions
                    .map_err(|error| format!("cniVersions: {error}"))?
                    .unwrap_or_default(),
                disable_check: false,
                disable_gc: false,
                plugins: vec![value],
            }
        };
        if !is_identifier(&list.name) {
            return Err(format!("\"{}\" is not a network name", list.name));
        }
        // From here on the list is of the version that its plugins are called with.
        list.cni_version = list.best_version()?;
        if list.plugins.is_empty() {
            return Err("no plugin in \"plugins\"".to_owned());
        }
        // The type is the name of the program, without which a plugin cannot be run.
        match list
            .plugins
            .iter()
            .position(|plugin| !plugin.get("type").is_some_and(Value::is_string))
        {
            Some(index) => Err(format!("plugin {index} has no \"type\"")),
            None => Ok(list),
        }
    }
}

impl ConfList {
    /// The newest version among `cniVersion` and `cniVersions` that berth knows.
    fn best_version(&self) -> Result<String, String> {
        let named = self.cni_versions.iter().chain([&self.cni_version]);
        let known =
            named.filter(|text| version(text) <= version(VERSION)).max_by_key(|text| version(text));
        known
            .cloned()
            .ok_or_else(|| format!("cniVersion {} is newer than {VERSION}", self.cni_version))
    }
}

/// A version as numbers, which compare as versions do. A part that is not a number counts as 0.
pub fn version(text: &str) -> [u32; 3] {
    // Compared as numbers: 0.10.0 is newer than 0.4.0.
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Whether a text is a valid network name or container id: `[a-zA-Z0-9][-_.a-zA-Z0-9]*`. Such a
/// text is also a safe file name.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_other_plugins_are_read() {
        let text = r#"{"cniVersion":"1.0.0",
            "interfaces":[{"name":"cni0","mac":"aa"},{"name":"eth0","sandbox":"/x"}],
            "ips":[{"interface":1,"address":"10.1.0.5/16","gateway":"10.1.0.1"},
                {"address":"fd00::2/64"}],
            "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"later":1}"#;
        let success: Success = serde_json::from_str(text).unwrap();
        assert_eq!(success.ips[0].address.addr().to_string(), "10.1.0.5");
        assert_eq!(success.ips[1].interface, None);
        assert_eq!(
            serde_json::from_str::<Success>(&serde_json::to_string(&success).unwrap()).unwrap(),
            success
        );
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        for (versions, best) in [
            (r#""cniVersion":"0.4.0""#, "0.4.0"),
            (r#""cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.1"]"#, "1.0.0"),
            (r#""cniVersion":"1.2.0","cniVersions":["1.2.0","1.1.0"]"#, "1.1.0"),
        ] {
            let text = format!(r#"{{{versions},"name":"a","plugins":[{{"type":"b"}}]}}"#);
            assert_eq!(ConfList::parse(&text).unwrap().cni_version, best, "{versions}");
        }
        assert!(version("1.1.0") >= [1, 1, 0] && version("0.10.0") > version("0.4.0"));
    }

    #[test]
    fn conf_lists_are_checked() {
        let one = ConfList::parse(r#"{"cniVersion":"0.4.0","name":"a","type":"bridge"}"#).unwrap();
        assert_eq!((one.name.as_str(), one.plugins.len()), ("a", 1));
        for (text, what) in [
            ("{", "EOF"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"a"}]}"#, "network name"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "no plugin"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[{}]}"#, "plugin 0"),
            (r#"{"name":"x","plugins":[{"type":"a"}]}"#, "cniVersion"),
            (r#"{"cniVersion":"2.0.0","name":"x","plugins":[{"type":"a"}]}"#, "newer"),
        ] {
            assert!(ConfList::parse(text).unwrap_err().contains(what), "{text}");
        }
    }
}
