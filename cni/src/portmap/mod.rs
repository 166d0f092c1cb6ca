//! Ports of the host that lead to a pod (DNAT): each is one element of a map of nftables, whose
//! comment says which pod it belongs to.

mod conntrack;

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use berth_cni::{Error, Ip, PortMapping, Protocol, code};
use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, setsockopt, sockopt,
    },
};

use crate::{
    args::Args,
    conf::Conf,
    names::{self, is_stale},
    nft::{
        Element,
        rules::{self, NODE, PORT_MAPS, bytes, failed},
    },
    sysctl,
};

/// Maps the ports that the runtime asks for to the addresses of `ips`: all of them or none.
///
/// # Errors
/// A port is another pod's, or a program of the host listens on it (code 103).
pub(crate) fn add(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    let mappings = conf.port_mappings();
    if mappings.is_empty() {
        return Ok(());
    }
    let elements = elements(mappings, ips, &names::owner(conf, args))?;
    // Only a host that is the pods' gateway has the address at which a port is tried.
    if conf.serves_gateway() {
        mappings.iter().try_for_each(|mapping| refuse_if_bound(mapping, ips))?;
    }
    for ip in ips {
        rules::allow_mapped(ip.address)?;
        // There is no such switch for ::1: the kernel never routes it out of the host.
        if let (IpAddr::V4(_), true) = (ip.address.addr(), conf.serves_gateway()) {
            route_localnet(&conf.gateway_interface())?;
        }
    }
    // As new elements: the kernel itself refuses a port that is mapped already, however many ADDs
    // run at the same time.
    match NODE.adding(&elements, |elements| NODE.add_new(elements)) {
        Ok(()) => forget_udp(&elements),
        Err(nix::libc::EEXIST) => Err(taken(&elements)?),
        Err(errno) => Err(failed("map ports of the host", errno)),
    }
}

/// Removes the ports of an attachment, and returns whether it had any.
///
/// Where the runtime says which ports they were, only those are looked up, and left alone if they
/// are another pod's by now. Otherwise all ports of the node are listed.
pub(crate) fn del(conf: &Conf, args: &Args) -> Result<bool, Error> {
    let owner = names::owner(conf, args);
    removed(match &conf.runtime_config.port_mappings {
        Some(mappings) => NODE.remove(&places(mappings), |comment| comment == owner),
        None => NODE.remove_all(&PORT_MAPS, |comment| comment == owner),
    })
}

/// Removes the ports of attachments of this network that are not valid any more.
pub(crate) fn collect_garbage(conf: &Conf) -> Result<(), Error> {
    removed(
        NODE.remove_all(&PORT_MAPS, |comment| {
            is_stale(comment, &conf.name, &conf.valid_attachments)
        }),
    )
    .map(drop)
}

/// Whether any were removed.
fn removed(elements: Result<Vec<Element>, i32>) -> Result<bool, Error> {
    let elements = elements.map_err(|errno| failed("remove from nftables", errno))?;
    forget_udp(&elements)?;
    Ok(!elements.is_empty())
}

/// Whether every port that the runtime asks for leads to the pod.
///
/// # Errors
/// One does not (code 102).
pub(crate) fn check(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    let owner = names::owner(conf, args);
    let wanted = elements(conf.port_mappings(), ips, &owner)?;
    let found = NODE.look_up(&wanted).map_err(|errno| failed("read nftables", errno))?;
    match wanted.iter().find(|element| !found.contains(element)) {
        Some(element) => {
            let what = format!("port {} of the host does not lead to the pod", describe(element));
            Err(Error::new(code::DRIFT, what))
        }
        None => Ok(()),
    }
}

/// The elements of these mappings: for each address of the pod one, if the mapping is for all
/// addresses of the host or for one of the same family.
fn elements(mappings: &[PortMapping], ips: &[Ip], owner: &str) -> Result<Vec<Element>, Error> {
    // Only the first address of each family, as a port can lead to one place only.
    let firsts = [true, false]
        .map(|v4| ips.iter().map(|ip| ip.address.addr()).find(|ip| ip.is_ipv4() == v4));
    let mut elements = Vec::new();
    for mapping in mappings {
        let at = host_address(mapping)?;
        for pod in firsts.into_iter().flatten() {
            let Some(place) = place(mapping, at, pod.is_ipv4()) else { continue };
            let data = [bytes(pod), port(mapping.container_port).to_vec()].concat();
            elements.push(Element { data: Some(data), comment: Some(owner.to_owned()), ..place });
        }
    }
    Ok(elements)
}

/// The keys that these mappings can have, whatever addresses the pod has or had. A mapping whose
/// `hostIP` is not an address is passed over: ADD has refused it.
fn places(mappings: &[PortMapping]) -> Vec<Element> {
    let mut places = Vec::new();
    for mapping in mappings {
        let Ok(at) = host_address(mapping) else { continue };
        places.extend([true, false].into_iter().filter_map(|v4| place(mapping, at, v4)));
    }
    places
}

/// Map and key of a mapping for the pod's address of one family; `None` when the mapping is for an
/// address of the host of the other family.
fn place(mapping: &PortMapping, at: Option<IpAddr>, v4: bool) -> Option<Element> {
    if at.is_some_and(|at| at.is_ipv4() != v4) {
        return None;
    }
    // 0.0.0.0 and :: mean all addresses of their family.
    let at = at.filter(|at| !at.is_unspecified());
    let set = match (at, v4) {
        (None, true) => "ports4",
        (None, false) => "ports6",
        (Some(_), true) => "ports4_at",
        (Some(_), false) => "ports6_at",
    };
    let mut key = at.map(bytes).unwrap_or_default();
    key.extend([number(mapping.protocol), 0, 0, 0]);
    key.extend(port(mapping.host_port));
    Some(Element::new(set, key))
}

/// The address of the host that a mapping is for; `None` for all addresses of both families.
///
/// # Errors
/// It is not an address (code 7).
fn host_address(mapping: &PortMapping) -> Result<Option<IpAddr>, Error> {
    match mapping.host_ip.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Error::new(
                code::INVALID_CONFIG,
                format!("portMappings: hostIP \"{text}\" is not an address"),
            )
        }),
    }
}

/// The number of a protocol in the IP header.
fn number(protocol: Protocol) -> u8 {
    let number = match protocol {
        Protocol::Tcp => nix::libc::IPPROTO_TCP,
        Protocol::Udp => nix::libc::IPPROTO_UDP,
        Protocol::Sctp => nix::libc::IPPROTO_SCTP,
    };
    number as u8
}

/// A port as a field of a key: four bytes, of which the first two are the port.
fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}

/// The port that a key names, as in `8080/tcp`.
fn describe(element: &Element) -> String {
    let [.., protocol, _, _, _, high, low, _, _] = element.key[..] else { return String::new() };
    let protocol = match i32::from(protocol) {
        nix::libc::IPPROTO_UDP => "udp",
        nix::libc::IPPROTO_SCTP => "sctp",
        _ => "tcp",
    };
    format!("{}/{protocol}", u16::from_be_bytes([high, low]))
}

/// The error for elements of which one is there already: which port it is, and whose.
fn taken(wanted: &[Element]) -> Result<Error, Error> {
    // By now it may be gone again; then the first of them is named, without an owner.
    let found = NODE.look_up(wanted).map_err(|errno| failed("read nftables", errno))?;
    let first = found.first().or(wanted.first());
    let what = first.map(describe).unwrap_or_default();
    let whose = found.first().and_then(|other| other.comment.as_deref()).unwrap_or_default();
    let whose = whose.split(' ').next().unwrap_or_default();
    Ok(Error::new(
        code::IN_USE,
        format!("port {what} of the host is mapped to container {whose} already"),
    ))
}

/// Refuses a port on which a program of the host listens: with the mapping it would not get another
/// connection. Programs that listen on some other address only, as a DNS server on 127.0.0.53, do
/// not conflict. Therefore a mapping for all addresses is tried at the gateway's address, where
/// only programs that listen on all addresses are in the way.
fn refuse_if_bound(mapping: &PortMapping, ips: &[Ip]) -> Result<(), Error> {
    let at = host_address(mapping)?;
    let gateways = ips.iter().filter_map(|ip| ip.gateway);
    let addresses: Vec<IpAddr> = match at {
        Some(at) if !at.is_unspecified() => vec![at],
        Some(at) => gateways.filter(|gateway| gateway.is_ipv4() == at.is_ipv4()).collect(),
        None => gateways.collect(),
    };
    for address in addresses {
        // Other errors do not tell: EADDRNOTAVAIL for an address that this machine does not have,
        // or not yet.
        if try_bind(mapping.protocol, SocketAddr::new(address, mapping.host_port))
            == Err(Errno::EADDRINUSE)
        {
            let what = format!(
                "port {}/{} of the host is in use by a program of the host",
                mapping.host_port, mapping.protocol
            );
            return Err(Error::new(code::IN_USE, what));
        }
    }
    Ok(())
}

/// Binds a socket to the address for a moment.
fn try_bind(protocol: Protocol, address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SockType::Stream, socket::SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, socket::SockProtocol::Udp),
        // nix has no constant for IPPROTO_SCTP, so SCTP is not tried.
        Protocol::Sctp => return Ok(()),
    };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if kind == SockType::Stream {
        // Connections in TIME_WAIT are no conflict, and with SO_REUSEADDR they give no error. A
        // socket that listens still does.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    match address {
        SocketAddr::V4(address) => socket::bind(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    }
}

/// Lets the host reach mapped ports at 127.0.0.1: without this the kernel drops packets from
/// 127.0.0.0/8 that leave through the bridge as martians. The chain `loopback` keeps others from
/// sending to the host's 127.0.0.1 because of it (CVE-2020-8558).
fn route_localnet(bridge: &str) -> Result<(), Error> {
    sysctl::enable(&format!("net/ipv4/conf/{bridge}/route_localnet"))
}

/// Forgets the UDP flows to the ports of these elements.
fn forget_udp(elements: &[Element]) -> Result<(), Error> {
    let ports: Vec<u16> = elements.iter().filter_map(udp_port).collect();
    // Listing all flows of a host costs something; most pods have no UDP ports.
    if ports.is_empty() { Ok(()) } else { conntrack::forget_udp(&ports) }
}

/// The port that a key names, if it is one of UDP.
fn udp_port(element: &Element) -> Option<u16> {
    let [.., protocol, _, _, _, high, low, _, _] = element.key[..] else { return None };
    let is_udp = i32::from(protocol) == nix::libc::IPPROTO_UDP;
    is_udp.then(|| u16::from_be_bytes([high, low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str) -> PortMapping {
        PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
            host_ip: host_ip.into(),
        }
    }

    fn ip(address: &str) -> Ip {
        Ip { interface: None, address: address.parse().unwrap(), gateway: None }
    }

    #[test]
    fn mappings_go_to_the_map_of_their_family() {
        let ips = [ip("10.1.0.5/16"), ip("fd00::5/64")];
        let sets = |host: &str| -> Vec<&str> {
            elements(&[mapping(host)], &ips, "o")
                .unwrap()
                .iter()
                .map(|element| element.set)
                .collect()
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
}
