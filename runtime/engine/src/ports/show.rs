//! What `docker ps` and `docker inspect` show of a container's ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;

use super::{Port, PortBinding};

/// A mapping that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub port: Port,
    pub host_ip: IpAddr,
    pub host_port: u16,
}

/// A port in the list of containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortSummary {
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    pub private_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_port: Option<u16>,
    #[serde(rename = "Type")]
    pub protocol: &'static str,
}

/// `NetworkSettings.Ports` of inspect: each exposed port, with null where it is not published.
pub fn for_inspect(
    exposed: &BTreeSet<Port>,
    published: &[Published],
) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let mut ports: BTreeMap<String, Option<Vec<PortBinding>>> =
        exposed.iter().map(|port| (port.to_string(), None)).collect();
    for mapping in published {
        let binding = PortBinding {
            host_ip: mapping.host_ip.to_string(),
            host_port: mapping.host_port.to_string(),
        };
        ports.entry(mapping.port.to_string()).or_default().get_or_insert_default().push(binding);
    }
    ports
}

/// `Ports` of the list of containers.
pub fn for_list(exposed: &BTreeSet<Port>, published: &[Published]) -> Vec<PortSummary> {
    let summary = |port: Port, at: Option<&Published>| PortSummary {
        ip: at.map(|published| published.host_ip),
        private_port: port.number,
        public_port: at.map(|published| published.host_port),
        protocol: port.protocol.as_str(),
    };
    let ports: BTreeSet<Port> =
        exposed.iter().copied().chain(published.iter().map(|mapping| mapping.port)).collect();
    let mut list = Vec::new();
    for port in ports {
        let mut own = published.iter().filter(|mapping| mapping.port == port).peekable();
        if own.peek().is_none() {
            list.push(summary(port, None));
        }
        list.extend(own.map(|mapping| summary(port, Some(mapping))));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Protocol, exposed},
        *,
    };

    fn tcp(number: u16) -> Port {
        Port { number, protocol: Protocol::Tcp }
    }

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        let exposed = exposed(["80/tcp", "53/udp"]).unwrap();
        let at = |host_ip: &str| Published {
            port: tcp(80),
            host_ip: host_ip.parse().unwrap(),
            host_port: 32768,
        };
        let published = [at("0.0.0.0"), at("::")];
        assert_eq!(
            serde_json::to_string(&for_inspect(&exposed, &published)).unwrap(),
            r#"{"53/udp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"32768"},{"HostIp":"::","HostPort":"32768"}]}"#
        );
        assert_eq!(
            serde_json::to_string(&for_list(&exposed, &published)).unwrap(),
            r#"[{"PrivatePort":53,"Type":"udp"},{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":32768,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":32768,"Type":"tcp"}]"#
        );
    }
}
