//! What a container asks for: which ports of the host lead to which of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Port, Protocol, invalid, parse_range};

/// `HostConfig.PortBindings`.
pub type PortBindings = BTreeMap<String, Option<Vec<Option<PortBinding>>>>;

/// One of the bindings of a port, as in requests and in `NetworkSettings.Ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    #[serde(rename = "HostIp", default, deserialize_with = "null_is_empty")]
    pub host_ip: String,
    #[serde(rename = "HostPort", default, deserialize_with = "null_is_empty")]
    pub host_port: String,
}

fn null_is_empty<'a, D: serde::Deserializer<'a>>(from: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(from).map(Option::unwrap_or_default)
}

/// The port of the host that a mapping wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPort {
    Fixed(u16),
    /// The first free one of these.
    Range(RangeInclusive<u16>),
    /// Any free one of the kernel's `ip_local_port_range`.
    Any,
}

/// A mapping that a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub port: Port,
    /// `None` for all addresses of the host.
    pub host_ip: Option<IpAddr>,
    pub host_port: HostPort,
}

/// The mappings that a container asks for: the `bindings` of its exposed ports, and with
/// `publish_all` any free port for each exposed one that has none. Those with a fixed port of the
/// host come first, so that no other takes it.
///
/// # Errors
/// `InvalidArgument` in the words of dockerd.
pub fn mappings(
    bindings: &PortBindings,
    exposed: &BTreeSet<Port>,
    publish_all: bool,
) -> Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    let mut unbound = exposed.clone();
    for (key, bindings) in bindings {
        let Some(port) = single(key)? else { continue };
        let bindings = bindings.as_deref().unwrap_or_default();
        let wanted = bindings.iter().map(|one| mapping(port, &one.clone().unwrap_or_default()));
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        // One that is bound without being exposed is checked, and has no effect.
        if exposed.contains(&port) && !wanted.is_empty() {
            unbound.remove(&port);
            mappings.extend(wanted);
        }
    }
    if publish_all {
        let any = |port| Mapping { port, host_ip: None, host_port: HostPort::Any };
        mappings.extend(unbound.into_iter().map(any));
    }
    mappings.sort_by_key(|mapping| {
        let is_fixed = matches!(mapping.host_port, HostPort::Fixed(_));
        (!is_fixed, mapping.port.number, mapping.port.protocol)
    });
    Ok(mappings)
}

/// A key of the bindings, which is one port and not 0. `None` for a protocol that cannot be
/// published, which is no error.
fn single(key: &str) -> Result<Option<Port>> {
    let (numbers, protocol) = key.split_once('/').unwrap_or((key, ""));
    match parse_range(numbers).map_err(|_| invalid(key))?.into_inner() {
        (number, last) if number == last && number != 0 => {
            Ok(Protocol::parse(protocol).map(|protocol| Port { number, protocol }))
        }
        _ => Err(invalid(key)),
    }
}

fn mapping(port: Port, binding: &PortBinding) -> Result<Mapping> {
    let text = binding.host_port.as_str();
    // The form of a range with a protocol is accepted, and the protocol is not looked at.
    let numbers = text.split_once('/').map_or(text, |(numbers, _)| numbers);
    let host_port = match text {
        "" => HostPort::Any,
        _ => match parse_range(numbers).map_err(|_| invalid(text))?.into_inner() {
            (0, 0) => HostPort::Any,
            (0, _) => return Err(invalid(text)),
            (start, end) if start == end => HostPort::Fixed(start),
            (start, end) => HostPort::Range(start..=end),
        },
    };
    let host_ip = match binding.host_ip.as_str() {
        "" => None,
        text => Some(parse_address(text)?),
    };
    Ok(Mapping { port, host_ip, host_port })
}

/// An address of the host. `::ffff:1.2.3.4` is `1.2.3.4`, and brackets of IPv6 may be there.
fn parse_address(text: &str) -> Result<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address: Result<IpAddr, _> = bare.parse();
    address.map(|address| address.to_canonical()).map_err(|_| {
        Error::invalid(format!("invalid JSON: ParseAddr(\"{text}\"): unable to parse IP"))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::{super::exposed, *};

    fn bindings(json: &str) -> PortBindings {
        serde_json::from_str(json).unwrap()
    }

    fn checked(json: &str) -> Result<Vec<Mapping>, String> {
        let exposed = exposed(["80/tcp", "53/udp", "7/sctp"]).unwrap();
        mappings(&bindings(json), &exposed, false).map_err(|error| error.message)
    }

    fn tcp(number: u16) -> Port {
        Port { number, protocol: Protocol::Tcp }
    }

    #[test]
    fn bindings_are_read_in_all_their_forms() {
        let plain = Mapping { port: tcp(80), host_ip: None, host_port: HostPort::Any };
        let udp = Port { number: 53, protocol: Protocol::Udp };
        let sctp = Port { number: 7, protocol: Protocol::Sctp };
        let localhost = Some(Ipv4Addr::LOCALHOST.into());
        for (json, expected) in [
            (r#"{"80/tcp":[{"HostIp":"","HostPort":""}]}"#, vec![plain.clone()]),
            (r#"{"80":[{}]}"#, vec![plain.clone()]),
            (r#"{"80/TCP":[null]}"#, vec![plain.clone()]),
            (r#"{"80/tcp":[{"HostIp":null,"HostPort":"0"}]}"#, vec![plain.clone()]),
            (r#"{"80/tcp":null}"#, vec![]),
            (r#"{"80/tcp":[]}"#, vec![]),
            // Nobody exposes these.
            (r#"{"81/tcp":[{"HostPort":"81"}],"80/icmp":[{}]}"#, vec![]),
            (
                r#"{"80/tcp":[{"HostPort":"8080-8090"}]}"#,
                vec![Mapping { host_port: HostPort::Range(8080..=8090), ..plain.clone() }],
            ),
            (
                r#"{"53/udp":[{"HostIp":"::1","HostPort":"53"}]}"#,
                vec![Mapping {
                    port: udp,
                    host_ip: Some(Ipv6Addr::LOCALHOST.into()),
                    host_port: HostPort::Fixed(53),
                }],
            ),
            (
                r#"{"7/sctp":[{"HostIp":"::ffff:127.0.0.1"}]}"#,
                vec![Mapping { port: sctp, host_ip: localhost, host_port: HostPort::Any }],
            ),
            // Fixed ports first, whatever the order of the request.
            (
                r#"{"80/tcp":[{"HostPort":""},{"HostPort":"81-81"}]}"#,
                vec![Mapping { host_port: HostPort::Fixed(81), ..plain.clone() }, plain.clone()],
            ),
        ] {
            assert_eq!(checked(json).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn wrong_bindings_are_refused_in_the_words_of_dockerd() {
        let wrong = |text: &str| format!("invalid port specification: \"{text}\"");
        for (json, message) in [
            (r#"{"0/tcp":null}"#, wrong("0/tcp")),
            (r#"{"x/tcp":null}"#, wrong("x/tcp")),
            (r#"{"":null}"#, wrong("")),
            (r#"{"80-81/tcp":null}"#, wrong("80-81/tcp")),
            (r#"{"65536/tcp":null}"#, wrong("65536/tcp")),
            (r#"{"80/tcp":[{"HostPort":"http"}]}"#, wrong("http")),
            (r#"{"80/tcp":[{"HostPort":"90-80"}]}"#, wrong("90-80")),
            (r#"{"80/tcp":[{"HostPort":"+80"}]}"#, wrong("+80")),
            (r#"{"80/tcp":[{"HostPort":"0-9"}]}"#, wrong("0-9")),
            (
                r#"{"80/tcp":[{"HostIp":"x"}]}"#,
                "invalid JSON: ParseAddr(\"x\"): unable to parse IP".to_owned(),
            ),
        ] {
            assert_eq!(checked(json), Err(message), "{json}");
        }
    }

    #[test]
    fn publish_all_takes_what_has_no_binding() {
        let exposed = exposed(["80/tcp", "443", "8000-8001/udp"]).unwrap();
        let wanted = bindings(r#"{"80/tcp":[{"HostPort":"8080"}],"9/tcp":[]}"#);
        let ports = |publish_all| {
            let mappings = mappings(&wanted, &exposed, publish_all).unwrap();
            mappings.iter().map(|mapping| mapping.port.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ports(false), ["80/tcp"]);
        assert_eq!(ports(true), ["80/tcp", "443/tcp", "8000/udp", "8001/udp"]);
    }
}
