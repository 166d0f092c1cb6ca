//! The configuration of `berth-bridge`: the keys of the upstream bridge plugin that it serves, and its own IPAM.

use std::{net::Ipv4Addr, path::PathBuf};

use berth_cni::{Attachment, Error, code, is_identifier};
use ipnet::Ipv4Net;
use serde::Deserialize;

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
    #[serde(default)]
    pub ip_masq: bool,
    pub mtu: Option<u32>,
    #[serde(default)]
    pub hairpin_mode: bool,
    pub ipam: Ipam,
    /// Who is to stay, in a GC.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ipam {
    /// `berth-local` or `host-local`: the built-in one serves both names.
    #[serde(rename = "type")]
    pub kind: String,
    pub subnet: Ipv4Net,
    pub range_start: Option<Ipv4Addr>,
    pub range_end: Option<Ipv4Addr>,
    pub gateway: Option<Ipv4Addr>,
    #[serde(default)]
    pub routes: Vec<berth_cni::Route>,
    /// Where reservations are files; /run, because no pod survives a reboot.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
}

fn default_bridge() -> String {
    "berth0".to_owned()
}

fn default_data_dir() -> PathBuf {
    "/run/berth/ipam".into()
}

impl Conf {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |msg: String| Err(Error::new(code::INVALID_CONFIG, msg));
        if !is_identifier(&self.name) {
            return invalid(format!("\"{}\" is not a network name", self.name));
        }
        if self.bridge.is_empty() || self.bridge.len() > 15 || !is_identifier(&self.bridge) {
            return invalid(format!("\"{}\" is not an interface name", self.bridge));
        }
        if !["berth-local", "host-local"].contains(&self.ipam.kind.as_str()) {
            return invalid(format!(
                "ipam type {}: only berth-local is served (host-local is the same)",
                self.ipam.kind
            ));
        }
        if self.ipam.subnet.prefix_len() > 30 {
            return invalid(format!("subnet {} has no room for a gateway and a pod", self.ipam.subnet));
        }
        let outside = [self.ipam.range_start, self.ipam.range_end, self.ipam.gateway].into_iter().flatten();
        match outside.into_iter().find(|address| !self.ipam.subnet.contains(address)) {
            Some(address) => invalid(format!("{address} is not in {}", self.ipam.subnet)),
            None if self.ipam.first() > self.ipam.last() => invalid("rangeStart is after rangeEnd".to_owned()),
            None => Ok(()),
        }
    }

    pub(crate) fn serves_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }
}

impl Ipam {
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway.unwrap_or_else(|| Ipv4Addr::from(u32::from(self.subnet.network()) + 1))
    }

    pub(crate) fn first(&self) -> Ipv4Addr {
        self.range_start.unwrap_or_else(|| Ipv4Addr::from(u32::from(self.subnet.network()) + 1))
    }

    pub(crate) fn last(&self) -> Ipv4Addr {
        self.range_end.unwrap_or_else(|| Ipv4Addr::from(u32::from(self.subnet.broadcast()) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(ipam: &str, bridge: &str) -> Result<(), Error> {
        let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","bridge":"{bridge}","ipam":{ipam}}}"#);
        serde_json::from_str::<Conf>(&text).map_err(|error| Error::new(code::DECODE, error.to_string()))?.check()
    }

    #[test]
    fn mistakes_are_named() {
        let good = r#"{"type":"berth-local","subnet":"10.1.0.0/24","rangeStart":"10.1.0.9"}"#;
        assert_eq!(parse(good, "b0"), Ok(()));
        for (ipam, bridge, what) in [
            (r#"{"type":"dhcp","subnet":"10.1.0.0/24"}"#, "b0", "dhcp"),
            (r#"{"type":"host-local","subnet":"10.1.0.0/31"}"#, "b0", "no room"),
            (r#"{"type":"host-local","subnet":"10.1.0.0/24","gateway":"10.2.0.1"}"#, "b0", "10.2.0.1"),
            (
                r#"{"type":"host-local","subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.3"}"#,
                "b0",
                "after",
            ),
            (r#"{"type":"host-local","subnet":"10.1.0"}"#, "b0", "invalid"),
            (good, "a/b", "interface name"),
            (good, "a-name-that-is-too-long", "interface name"),
        ] {
            assert!(parse(ipam, bridge).unwrap_err().msg.contains(what), "{ipam} {bridge}");
        }
    }
}
