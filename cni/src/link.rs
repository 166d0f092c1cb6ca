//! The few words of rtnetlink that a bridge network needs.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use berth_cni::{Error, code};
use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::{
    address::AddressAttribute,
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute},
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// What matters of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub mac: String,
    pub is_up: bool,
    pub is_bridge: bool,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
}

/// `None` when there is no interface of this name.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(message) => Ok(message.map(|message| read(&message))),
        Err(error) if is(&error, nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(failed("look up", name, &error)),
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        mac: String::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_bridge: false,
        controller: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
            }
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos
                    .iter()
                    .any(|info| matches!(info, netlink_packet_route::link::LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}

/// The bridge, made if it is not there and brought up. An interface of that name that is no bridge is an error.
///
/// It gets a MAC address of its own: without one it takes the lowest of its ports', and the neighbour tables of all pods are
/// wrong when that port leaves.
pub(crate) async fn ensure_bridge(handle: &Handle, name: &str, mac: [u8; 6], mtu: Option<u32>) -> Result<Link, Error> {
    if let Some(link) = find(handle, name).await? {
        if !link.is_bridge {
            return Err(Error::new(code::INVALID_CONFIG, format!("{name} exists and is not a bridge")));
        }
        if !link.is_up {
            bring_up(handle, link.index).await?;
        }
        return Ok(link);
    }
    let mut message = LinkBridge::new(name).address(mac.to_vec()).up();
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    match handle.link().add(message.build()).execute().await {
        // Another ADD was first.
        Err(error) if !is(&error, nix::libc::EEXIST) => return Err(failed("make bridge", name, &error)),
        _ => {}
    }
    find(handle, name).await?.ok_or_else(|| Error::new(code::KERNEL, format!("bridge {name} vanished")))
}

/// A pair: `host` is a port of the bridge here and up, `inside` is in the other namespace and down, because the kernel opens no
/// peer before the pair is whole. One message.
pub(crate) async fn add_pair(handle: &Handle, pair: &Pair<'_>) -> Result<(), Error> {
    let with_mtu = |mtu: Option<u32>| mtu.map(LinkAttribute::Mtu);
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(pair.inside).setns_by_fd(pair.netns.as_raw_fd());
    let mut host =
        LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(pair.host).controller(pair.bridge).up();
    if let Some(mtu) = with_mtu(pair.mtu) {
        peer = peer.append_extra_attribute(mtu.clone());
        host = host.append_extra_attribute(mtu);
    }
    let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    handle.link().add(host).execute().await.map_err(|error| failed("make veth", pair.host, &error))
}

#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub host: &'a str,
    pub inside: &'a str,
    pub netns: BorrowedFd<'a>,
    pub bridge: u32,
    pub mtu: Option<u32>,
}

pub(crate) async fn bring_up(handle: &Handle, index: u32) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(|error| failed("bring up interface", &index.to_string(), &error))
}

/// Lets a port send back what came in through it, so that a pod can reach itself through a mapped port.
pub(crate) async fn set_hairpin(handle: &Handle, index: u32) -> Result<(), Error> {
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .index(index)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]))
        .build();
    handle
        .link()
        .set_port(message)
        .execute()
        .await
        .map_err(|error| failed("set hairpin of", &index.to_string(), &error))
}

/// Deletes an interface, and with a veth its peer. Success when it is not there.
pub(crate) async fn delete(handle: &Handle, name: &str) -> Result<(), Error> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(link.index).execute().await {
        Err(error) if !is(&error, nix::libc::ENODEV) => Err(failed("delete", name, &error)),
        _ => Ok(()),
    }
}

/// Adds an address; success when it is there already.
pub(crate) async fn add_address(handle: &Handle, index: u32, address: Ipv4Net) -> Result<(), Error> {
    match handle.address().add(index, IpAddr::V4(address.addr()), address.prefix_len()).execute().await {
        Err(error) if !is(&error, nix::libc::EEXIST) => Err(failed("add address", &address.to_string(), &error)),
        _ => Ok(()),
    }
}

pub(crate) async fn addresses(handle: &Handle, index: u32) -> Result<Vec<IpAddr>, Error> {
    let mut stream = handle.address().get().set_link_index_filter(index).execute();
    let mut addresses = Vec::new();
    while let Some(message) =
        stream.try_next().await.map_err(|error| failed("list addresses of", &index.to_string(), &error))?
    {
        addresses.extend(message.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        }));
    }
    Ok(addresses)
}

/// A route through `gateway`; success when it is there already.
pub(crate) async fn add_route(handle: &Handle, destination: IpNet, gateway: Ipv4Addr) -> Result<(), Error> {
    let IpNet::V4(destination) = destination else {
        return Err(Error::new(code::INVALID_CONFIG, format!("route {destination}: only IPv4 is served")));
    };
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .gateway(gateway)
        .build();
    match handle.route().add(route).execute().await {
        Err(error) if !is(&error, nix::libc::EEXIST) => Err(failed("add route", &destination.to_string(), &error)),
        _ => Ok(()),
    }
}

pub(crate) async fn has_default_route(handle: &Handle, gateway: Ipv4Addr) -> Result<bool, Error> {
    let mut stream = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = stream.try_next().await.map_err(|error| failed("list", "routes", &error))? {
        let via = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
        if route.header.destination_prefix_length == 0 && route.attributes.contains(&via) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn failed(what: &str, subject: &str, error: &rtnetlink::Error) -> Error {
    let cause = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    Error::new(code::KERNEL, format!("{what} {subject}: {cause}"))
}
