//! Ports of the host that lead to a pod: one element of a map for each, with its owner as the comment.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use berth_cni::{Attachment, Error, Ip, PortMapping, Protocol, code};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, ProtoTuple, Protocol as ConntrackProtocol, Tuple},
};
use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, setsockopt, sockopt},
};

use crate::{
    Args,
    conf::Conf,
    nft::{Element, converse},
    rules::{self, NODE, PORT_MAPS, bytes, failed, pick},
};

/// Maps the ports that the runtime asks for to the addresses of `ips`.
///
/// # Errors
/// A port that another pod or another program of the host has; nothing is mapped then.
pub(crate) fn add(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    let mappings = &conf.runtime_config.port_mappings;
    if mappings.is_empty() {
        return Ok(());
    }
    let elements = elements(mappings, ips, &args.owner(conf))?;
    if conf.serves_gateway() {
        mappings.iter().try_for_each(|mapping| refuse_if_bound(mapping, ips))?;
    }
    for ip in ips {
        rules::allow_mapped(ip.address)?;
        if let (IpAddr::V4(_), true) = (ip.address.addr(), conf.serves_gateway()) {
            route_localnet(&conf.gateway_interface())?;
        }
    }
    match NODE.adding(&elements, |elements| NODE.add_new(elements)) {
        Ok(()) => forget_udp(&elements),
        Err(nix::libc::EEXIST) => Err(taken(&elements)?),
        Err(errno) => Err(failed("map ports of the host", errno)),
    }
}

/// Removes what an attachment has; success when that is nothing.
pub(crate) fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    let owner = args.owner(conf);
    remove(&NODE.owned(&PORT_MAPS, |comment| comment == owner)?)
}

/// Removes what belongs to nobody valid of this network.
pub(crate) fn collect_garbage(conf: &Conf) -> Result<(), Error> {
    remove(&NODE.owned(&PORT_MAPS, |comment| is_stale(comment, &conf.name, &conf.valid_attachments))?)
}

/// Whether every port that was asked for leads to the pod.
pub(crate) fn check(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    if conf.runtime_config.port_mappings.is_empty() {
        return Ok(());
    }
    let owner = args.owner(conf);
    let own = NODE.owned(&PORT_MAPS, |comment| comment == owner)?;
    let wanted = elements(&conf.runtime_config.port_mappings, ips, &owner)?;
    match wanted.iter().find(|element| !own.contains(element)) {
        Some(element) => {
            let what = format!("port {} of the host does not lead to the pod", describe(element));
            Err(Error::new(code::DRIFT, what))
        }
        None => Ok(()),
    }
}

/// Of a comment that `Args::owner` wrote.
pub(crate) fn is_stale(comment: &str, network: &str, valid: &[Attachment]) -> bool {
    let mut words = comment.split(' ');
    let (Some(container_id), Some(ifname), Some(of)) = (words.next(), words.next(), words.next()) else { return false };
    of == network && !valid.iter().any(|one| one.container_id == container_id && one.ifname == ifname)
}

/// A mapping without an address of the host, or with one of the same family, for each address of the pod.
fn elements(mappings: &[PortMapping], ips: &[Ip], owner: &str) -> Result<Vec<Element>, Error> {
    let mut elements = Vec::new();
    for mapping in mappings {
        let at = host_address(mapping)?;
        // The first of each family: a port leads to one place.
        let firsts = [true, false].map(|v4| ips.iter().map(|ip| ip.address.addr()).find(|ip| ip.is_ipv4() == v4));
        let pods = firsts.into_iter().flatten().filter(|pod| at.is_none_or(|at| at.is_ipv4() == pod.is_ipv4()));
        for pod in pods {
            let any = at.is_none_or(|at| at.is_unspecified());
            let set = if any { ["ports4", "ports6"] } else { ["ports4_at", "ports6_at"] };
            let mut key = at.filter(|_| !any).map(bytes).unwrap_or_default();
            key.extend([number(mapping.protocol), 0, 0, 0]);
            key.extend(port(mapping.host_port));
            let data = [bytes(pod), port(mapping.container_port).to_vec()].concat();
            let element = Element::new(pick(pod, set), key);
            elements.push(Element { data: Some(data), comment: Some(owner.to_owned()), ..element });
        }
    }
    Ok(elements)
}

/// `None` for all addresses of both families.
fn host_address(mapping: &PortMapping) -> Result<Option<IpAddr>, Error> {
    match mapping.host_ip.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Error::new(code::INVALID_CONFIG, format!("portMappings: hostIP \"{text}\" is not an address"))
        }),
    }
}

fn number(protocol: Protocol) -> u8 {
    let number = match protocol {
        Protocol::Tcp => nix::libc::IPPROTO_TCP,
        Protocol::Udp => nix::libc::IPPROTO_UDP,
        Protocol::Sctp => nix::libc::IPPROTO_SCTP,
    };
    number as u8
}

/// As a field of four bytes.
fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}

/// `8080/tcp` of a key.
fn describe(element: &Element) -> String {
    let [.., protocol, _, _, _, high, low, _, _] = element.key[..] else { return String::new() };
    let protocol = match i32::from(protocol) {
        nix::libc::IPPROTO_UDP => "udp",
        nix::libc::IPPROTO_SCTP => "sctp",
        _ => "tcp",
    };
    format!("{}/{protocol}", u16::from_be_bytes([high, low]))
}

fn remove(elements: &[Element]) -> Result<(), Error> {
    if elements.is_empty() {
        return Ok(());
    }
    NODE.remove_found(elements)?;
    forget_udp(elements)
}

/// Says which of `wanted` is there already, and whose.
fn taken(wanted: &[Element]) -> Result<Error, Error> {
    let others = NODE.owned(&PORT_MAPS, |_| true)?;
    let is_same = |one: &Element, other: &Element| one.set == other.set && one.key == other.key;
    let found = wanted.iter().find_map(|one| others.iter().find(|other| is_same(one, other)));
    let (what, whose) = match found {
        Some(other) => (describe(other), other.comment.clone().unwrap_or_default()),
        None => (wanted.first().map(describe).unwrap_or_default(), String::new()),
    };
    let whose = whose.split(' ').next().unwrap_or_default().to_owned();
    Ok(Error::new(code::IN_USE, format!("port {what} of the host is mapped to container {whose} already")))
}

/// A program that listens on the port would never hear anything again. Those that listen on other addresses only, as a DNS
/// server on 127.0.0.53, are not concerned: a port of all addresses is tried at the gateway's, which nobody else listens on.
fn refuse_if_bound(mapping: &PortMapping, ips: &[Ip]) -> Result<(), Error> {
    let at = host_address(mapping)?;
    let gateways = ips.iter().filter_map(|ip| ip.gateway);
    let addresses: Vec<IpAddr> = match at {
        Some(at) if !at.is_unspecified() => vec![at],
        Some(at) => gateways.filter(|gateway| gateway.is_ipv4() == at.is_ipv4()).collect(),
        None => gateways.collect(),
    };
    for address in addresses {
        // Others mean that nobody can tell: not an address of this machine (yet), or a kernel without SCTP.
        if try_bind(mapping.protocol, SocketAddr::new(address, mapping.host_port)) == Err(Errno::EADDRINUSE) {
            let what = format!(
                "port {}/{} of the host is in use by a program of the host",
                mapping.host_port, mapping.protocol
            );
            return Err(Error::new(code::IN_USE, what));
        }
    }
    Ok(())
}

fn try_bind(protocol: Protocol, address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SockType::Stream, socket::SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, socket::SockProtocol::Udp),
        // nix has no name for it.
        Protocol::Sctp => return Ok(()),
    };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if kind == SockType::Stream {
        // Connections of before are no reason; what listens is one still.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    match address {
        SocketAddr::V4(address) => socket::bind(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    }
}

/// Lets the host reach pods from 127.0.0.1; the chain `loopback` keeps others from using it the other way round.
fn route_localnet(bridge: &str) -> Result<(), Error> {
    crate::link::write_sysctl(&format!("net/ipv4/conf/{bridge}/route_localnet"))
}

/// A flow of UDP has no beginning: those to these ports go on where they went until they are forgotten.
fn forget_udp(elements: &[Element]) -> Result<(), Error> {
    let is_udp = |element: &&Element| element.key[element.key.len() - 8] == nix::libc::IPPROTO_UDP as u8;
    let port_of = |element: &Element| {
        let [.., high, low, _, _] = element.key[..] else { return 0 };
        u16::from_be_bytes([high, low])
    };
    let ports: Vec<u16> = elements.iter().filter(is_udp).map(port_of).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let message = |attributes: Vec<ConntrackAttribute>, make: fn(Vec<ConntrackAttribute>) -> ConntrackMessage| {
        NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), make(attributes))
    };
    let all = converse(vec![(message(Vec::new(), ConntrackMessage::Get), NLM_F_REQUEST | NLM_F_DUMP)], 1)
        .map_err(|errno| failed("list flows", errno))?;
    for flow in all {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = flow.inner else { continue };
        let Some(origin) = attributes
            .into_iter()
            .find(|attribute| matches!(attribute, ConntrackAttribute::CtaTupleOrig(tuples) if to_port(tuples, &ports)))
        else {
            continue;
        };
        let family = flow.header.family;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Delete(vec![origin]));
        match converse(vec![(message, NLM_F_REQUEST | NLM_F_ACK)], 1) {
            Ok(_) | Err(nix::libc::ENOENT) => {}
            Err(errno) => return Err(failed("forget a flow", errno)),
        }
    }
    Ok(())
}

fn to_port(tuples: &[Tuple], ports: &[u16]) -> bool {
    let fields = tuples.iter().filter_map(|tuple| match tuple {
        Tuple::Proto(fields) => Some(fields),
        _ => None,
    });
    let fields: Vec<&ProtoTuple> = fields.flatten().collect();
    fields.contains(&&ProtoTuple::Protocol(ConntrackProtocol::Udp))
        && fields.iter().any(|field| matches!(field, ProtoTuple::DestinationPort(port) if ports.contains(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str) -> PortMapping {
        PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Udp, host_ip: host_ip.into() }
    }

    fn ip(address: &str) -> Ip {
        Ip { interface: None, address: address.parse().unwrap(), gateway: None }
    }

    #[test]
    fn mappings_go_to_the_map_of_their_family() {
        let ips = [ip("10.1.0.5/16"), ip("fd00::5/64")];
        let sets = |host: &str| -> Vec<&str> {
            elements(&[mapping(host)], &ips, "o").unwrap().iter().map(|element| element.set).collect()
        };
        assert_eq!(sets(""), ["ports4", "ports6"]);
        assert_eq!(sets("0.0.0.0"), ["ports4"]);
        assert_eq!(sets("::"), ["ports6"]);
        assert_eq!(sets("192.0.2.1"), ["ports4_at"]);
        assert_eq!(sets("2001:db8::1"), ["ports6_at"]);
        let all = elements(&[mapping("192.0.2.1")], &ips, "o").unwrap();
        assert_eq!(all[0].key, [192, 0, 2, 1, 17, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(all[0].data.as_deref(), Some(&[10, 1, 0, 5, 0, 80, 0, 0][..]));
        assert_eq!(describe(&all[0]), "8080/udp");
        assert_eq!(elements(&[mapping("x")], &ips, "o").unwrap_err().code, code::INVALID_CONFIG);
    }

    #[test]
    fn only_ones_own_network_is_collected() {
        let valid = [Attachment { container_id: "a".into(), ifname: "eth0".into() }];
        assert!(!is_stale("a eth0 net", "net", &valid));
        assert!(is_stale("a eth1 net", "net", &valid));
        assert!(is_stale("b eth0 net", "net", &valid));
        assert!(!is_stale("b eth0 other", "net", &valid));
        assert!(!is_stale("somebody's", "net", &valid));
    }
}
