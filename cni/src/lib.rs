//! The Container Network Interface, version 1.1.0, as types: what a plugin reads and what it prints.
//!
//! The daemon reads results and errors of any plugin with these, and `berth-bridge` writes them. No I/O.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that berth writes.
pub const VERSION: &str = "1.1.0";

/// Error codes of the specification's section "Error"; a plugin's own begin at 100.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const NOT_AVAILABLE: u32 = 50;
    pub const LIMITED: u32 = 51;
    /// Own: the kernel refused a step.
    pub const KERNEL: u32 = 100;
    /// Own: every address of the range is in use.
    pub const EXHAUSTED: u32 = 101;
    /// Own: CHECK found something other than what ADD made.
    pub const DRIFT: u32 = 102;
    /// Own: a port of the host, or an address that was asked for, belongs to somebody else.
    pub const IN_USE: u32 = 103;
}

/// What ADD answers, and what later calls get back as `prevResult`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Success {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    #[serde(default)]
    pub ips: Vec<Ip>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub dns: Value,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default)]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the prefix length of its network.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// `mtu`, `advmss`, `scope`: not ours to read, and not to be lost.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// The capability `portMappings`: a port of the host that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    // containerd writes all of these with a capital, which Go's decoder does not mind.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    #[serde(alias = "Protocol", default)]
    pub protocol: Protocol,
    /// An address of the host; empty, `0.0.0.0` or `::` for all.
    #[serde(rename = "hostIP", alias = "HostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

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

/// The capability `bandwidth`: bits per second and bits, as the pod sees the directions; 0 for no limit.
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

/// What a plugin prints when it fails, with an exit status other than 0.
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

/// One attachment, as GC names those that are to stay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// A list of plugins, `*.conflist`; a single plugin's `*.conf` reads as a list of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfList {
    pub name: String,
    pub cni_version: String,
    #[serde(default)]
    pub cni_versions: Vec<String>,
    #[serde(default)]
    pub disable_check: bool,
    #[serde(default, rename = "disableGC")]
    pub disable_gc: bool,
    pub plugins: Vec<BTreeMap<String, Value>>,
}

impl ConfList {
    /// Parses a `*.conflist`, or a `*.conf` or `*.json` that holds one plugin.
    ///
    /// # Errors
    /// Not JSON, a required key is missing, a name outside `[a-zA-Z0-9][-_.a-zA-Z0-9]*`, or a plugin without `type`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut list: Self = if value.contains_key("plugins") {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (name, cni_version) = (text("name"), text("cniVersion"));
            let cni_versions = value.get("cniVersions").cloned().map(serde_json::from_value).transpose();
            let cni_versions = cni_versions.map_err(|error| format!("cniVersions: {error}"))?.unwrap_or_default();
            let (disable_check, disable_gc) = (false, false);
            Self { name, cni_version, cni_versions, disable_check, disable_gc, plugins: vec![value] }
        };
        if !is_identifier(&list.name) {
            return Err(format!("\"{}\" is not a network name", list.name));
        }
        list.cni_version = list.best_version()?;
        if list.plugins.is_empty() {
            return Err("no plugin in \"plugins\"".to_owned());
        }
        match list.plugins.iter().position(|plugin| !plugin.get("type").is_some_and(Value::is_string)) {
            Some(index) => Err(format!("plugin {index} has no \"type\"")),
            None => Ok(list),
        }
    }
}

impl ConfList {
    /// The highest that both sides know, of `cniVersion` and `cniVersions`.
    fn best_version(&self) -> Result<String, String> {
        let named = self.cni_versions.iter().chain([&self.cni_version]);
        let known = named.filter(|text| version(text) <= version(VERSION)).max_by_key(|text| version(text));
        known.cloned().ok_or_else(|| format!("cniVersion {} is newer than {VERSION}", self.cni_version))
    }
}

/// A version as numbers that compare; what is no number counts as 0.
pub fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// What network names and container ids may look like.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_other_plugins_are_read() {
        let text = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"aa"},{"name":"eth0","sandbox":"/x"}],
            "ips":[{"interface":1,"address":"10.1.0.5/16","gateway":"10.1.0.1"},{"address":"fd00::2/64"}],
            "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"later":1}"#;
        let success: Success = serde_json::from_str(text).unwrap();
        assert_eq!(success.ips[0].address.addr().to_string(), "10.1.0.5");
        assert_eq!(success.ips[1].interface, None);
        assert_eq!(serde_json::from_str::<Success>(&serde_json::to_string(&success).unwrap()).unwrap(), success);
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
