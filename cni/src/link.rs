//! The few words of rtnetlink that a bridge network needs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use berth_cni::{Error, Route, code};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, BridgeVlanInfoFlags, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
};
use rtnetlink::{Handle, LinkBridge, LinkBridgeVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// What matters of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub mac: String,
    pub is_up: bool,
    pub is_promiscuous: bool,
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
        is_promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        is_bridge: false,
        controller: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = format_mac(bytes);
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

/// How the bridge is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge<'a> {
    pub name: &'a str,
    /// Of its own: without one it takes the lowest of its ports', and the neighbour tables of all pods are wrong when that port
    /// leaves.
    pub mac: [u8; 6],
    pub mtu: Option<u32>,
    pub promiscuous: bool,
    pub filters_vlans: bool,
}

/// The bridge, made if it is not there and brought up. An interface of that name that is no bridge is an error.
pub(crate) async fn ensure_bridge(handle: &Handle, bridge: &Bridge<'_>) -> Result<Link, Error> {
    let name = bridge.name;
    let refused = |error: rtnetlink::Error| failed("set up bridge", name, &error);
    if let Some(link) = find(handle, name).await? {
        if !link.is_bridge {
            return Err(Error::new(code::INVALID_CONFIG, format!("{name} exists and is not a bridge")));
        }
        if !link.is_up || (bridge.promiscuous && !link.is_promiscuous) {
            let mut message = LinkUnspec::new_with_index(link.index).up();
            if bridge.promiscuous {
                message = message.promiscuous(true);
            }
            handle.link().set(message.build()).execute().await.map_err(refused)?;
        }
        if bridge.filters_vlans {
            let message = LinkBridge::new(name).vlan_filtering(true).build();
            handle.link().change(message).execute().await.map_err(refused)?;
        }
        return Ok(link);
    }
    let mut message = LinkBridge::new(name).address(bridge.mac.to_vec()).up();
    if let Some(mtu) = bridge.mtu {
        message = message.mtu(mtu);
    }
    if bridge.promiscuous {
        message = message.promiscuous(true);
    }
    if bridge.filters_vlans {
        message = message.vlan_filtering(true);
    }
    match handle.link().add(message.build()).execute().await {
        // Another ADD was first.
        Err(error) if !is(&error, nix::libc::EEXIST) => return Err(failed("make bridge", name, &error)),
        _ => {}
    }
    find(handle, name).await?.ok_or_else(|| Error::new(code::KERNEL, format!("bridge {name} vanished")))
}

#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub host: &'a str,
    pub inside: &'a str,
    pub netns: BorrowedFd<'a>,
    pub bridge: u32,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
}

/// A pair: `host` is a port of the bridge here, `inside` is in the other namespace, and both are down. One message.
pub(crate) async fn add_pair(handle: &Handle, pair: &Pair<'_>) -> Result<(), Error> {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(pair.inside).setns_by_fd(pair.netns.as_raw_fd());
    let mut host =
        LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(pair.host).controller(pair.bridge);
    if let Some(mtu) = pair.mtu {
        peer = peer.mtu(mtu);
        host = host.mtu(mtu);
    }
    if let Some(mac) = pair.mac {
        peer = peer.address(mac.to_vec());
    }
    let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    handle.link().add(host).execute().await.map_err(|error| failed("make veth", pair.host, &error))
}

pub(crate) async fn bring_up(handle: &Handle, index: u32) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(|error| failed("bring up interface", &index.to_string(), &error))
}

/// An interface that has no IPv6 address of its own making: hundreds of them that look for neighbours and routers are heard by all. To be
/// called before it is up. A kernel without IPv6 has nothing to set.
pub(crate) async fn no_link_local(handle: &Handle, index: u32) {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
    let _ = handle.link().set(message).execute().await;
}

/// Brings up a port. Hairpin: it may send back what came in through it. Isolated: ports that are do not reach one another.
pub(crate) async fn start_port(handle: &Handle, index: u32, hairpin: bool, isolated: bool) -> Result<(), Error> {
    // The bridge has the host's addresses.
    no_link_local(handle, index).await;
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
    let settings: Vec<InfoBridgePort> =
        [hairpin.then_some(InfoBridgePort::HairpinMode(true)), isolated.then_some(InfoBridgePort::Isolated(true))]
            .into_iter()
            .flatten()
            .collect();
    if !settings.is_empty() {
        message = message.set_port_kind(InfoPortKind::Bridge).set_port_data(InfoPortData::BridgePort(settings));
    }
    let started = handle.link().set_port(message.build()).execute().await;
    started.map_err(|error| failed("bring up port", &index.to_string(), &error))
}

/// The VLANs of a port: one whose packets have no tags, those that pass with theirs, and the bridge's own or not.
pub(crate) async fn set_vlans(
    handle: &Handle,
    index: u32,
    untagged: u16,
    tagged: &[(u16, u16)],
    keep_default: bool,
) -> Result<(), Error> {
    let refused = |error: rtnetlink::Error| failed("set VLANs of port", &index.to_string(), &error);
    const DEFAULT: u16 = 1;
    if !keep_default {
        let message = LinkBridgeVlan::new(index).vlan(DEFAULT, BridgeVlanInfoFlags::empty()).build();
        handle.link().del_with_message(message).execute().await.map_err(refused)?;
    }
    let mut message = LinkBridgeVlan::new(index);
    if untagged != 0 {
        message = message.vlan(untagged, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged);
    }
    for (first, last) in tagged {
        message = if first == last {
            message.vlan(*first, BridgeVlanInfoFlags::empty())
        } else {
            message
                .vlan_range_start(*first, BridgeVlanInfoFlags::empty())
                .vlan_range_end(*last, BridgeVlanInfoFlags::empty())
        };
    }
    handle.link().set(message.build()).execute().await.map_err(refused)
}

/// Deletes an interface, and with a veth its peer. Success when it is not there.
pub(crate) async fn delete(handle: &Handle, name: &str) -> Result<(), Error> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(link.index).execute().await {
        Err(error) if !is(&error, nix::libc::ENODEV) => Err(failed("delete", name, &error)),
        _ => Ok(()),
    }
}

/// Adds an address; success when it is there already. With `checked` the kernel looks for duplicates of an IPv6 address first.
pub(crate) async fn add_address(handle: &Handle, index: u32, address: IpNet, checked: bool) -> Result<(), Error> {
    add_new_address(handle, index, address, checked).await.map(drop)
}

/// Whether it was not there before.
async fn add_new_address(handle: &Handle, index: u32, address: IpNet, checked: bool) -> Result<bool, Error> {
    let mut request = handle.address().add(index, address.addr(), address.prefix_len());
    if !checked && address.addr().is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if is(&error, nix::libc::EEXIST) => Ok(false),
        Err(error) => Err(failed("add address", &address.to_string(), &error)),
    }
}

/// Makes `gateway` the bridge's address, besides those of `others`.
///
/// # Errors
/// It has another IPv4 address, or one of the same IPv6 network; with `force` that is taken off.
pub(crate) async fn own_address(
    handle: &Handle,
    bridge: (&str, u32),
    gateway: IpNet,
    others: &[IpNet],
    force: bool,
) -> Result<(), Error> {
    let (name, index) = bridge;
    // There already, as for every pod but the first: then the others were looked at, and are not listed each time.
    if !add_new_address(handle, index, gateway, false).await? {
        return Ok(());
    }
    for message in address_messages(handle, index).await? {
        let Some(found) = address_of(&message) else { continue };
        let same_family = found.is_ipv4() == gateway.addr().is_ipv4();
        let is_other = same_family && found != gateway.addr() && !others.iter().any(|other| other.addr() == found);
        if !is_other || (found.is_ipv6() && !gateway.contains(&found)) {
            continue;
        }
        if force {
            let removed = handle.address().del(message).execute().await;
            removed.map_err(|error| failed("remove address", &found.to_string(), &error))?;
            continue;
        }
        let ours =
            address_messages(handle, index).await?.into_iter().find(|one| address_of(one) == Some(gateway.addr()));
        if let Some(ours) = ours {
            let removed = handle.address().del(ours).execute().await;
            removed.map_err(|error| failed("remove address", &gateway.to_string(), &error))?;
        }
        let msg = format!("{name} has the address {found} and not {gateway}: see forceAddress");
        return Err(Error::new(code::INVALID_CONFIG, msg));
    }
    Ok(())
}

pub(crate) async fn addresses(handle: &Handle, index: u32) -> Result<Vec<IpAddr>, Error> {
    Ok(address_messages(handle, index).await?.iter().filter_map(address_of).collect())
}

async fn address_messages(handle: &Handle, index: u32) -> Result<Vec<AddressMessage>, Error> {
    let stream = handle.address().get().set_link_index_filter(index).execute();
    stream.try_collect().await.map_err(|error| failed("list addresses of", &index.to_string(), &error))
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// Waits until the kernel has looked for duplicates of all addresses.
///
/// # Errors
/// There is one.
pub(crate) async fn settle(handle: &Handle, index: u32) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        let messages = address_messages(handle, index).await?;
        let with = |flag| messages.iter().find(|message| message.header.flags.contains(flag));
        if let Some(duplicate) = with(AddressHeaderFlags::Dadfailed) {
            let address = address_of(duplicate).map(|address| address.to_string()).unwrap_or_default();
            return Err(Error::new(code::IN_USE, format!("somebody else in the network has the address {address}")));
        }
        if with(AddressHeaderFlags::Tentative).is_none() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::new(code::KERNEL, "the search for duplicate addresses does not end"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A route; success when it is there already.
pub(crate) async fn add_route(handle: &Handle, index: u32, route: &Route) -> Result<(), Error> {
    match handle.route().add(route_message(index, route)?).execute().await {
        Err(error) if !is(&error, nix::libc::EEXIST) => Err(failed("add route", &route.dst.to_string(), &error)),
        _ => Ok(()),
    }
}

/// Without a gateway, what it leads to is reached directly.
fn route_message(index: u32, route: &Route) -> Result<RouteMessage, Error> {
    let invalid = |error: String| Error::new(code::INVALID_CONFIG, format!("route {}: {error}", route.dst));
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.dst.network(), route.dst.prefix_len())
        .map_err(|error| invalid(error.to_string()))?;
    message = match route.gw {
        Some(gateway) => message.gateway(gateway).map_err(|error| invalid(error.to_string()))?,
        None => message.scope(RouteScope::Link),
    };
    if let Some(priority) = route.priority {
        message = message.priority(priority);
    }
    if let Some(table) = route.table {
        message = message.table_id(table);
    }
    Ok(message.output_interface(index).build())
}

/// Destination and gateway of the routes of a family.
pub(crate) async fn routes(handle: &Handle, v4: bool) -> Result<Vec<(IpNet, Option<IpAddr>)>, Error> {
    let filter = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let stream = handle.route().get(filter).execute();
    let messages: Vec<RouteMessage> = stream.try_collect().await.map_err(|error| failed("list", "routes", &error))?;
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let read = |message: RouteMessage| {
        let (mut destination, mut gateway) = (any, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => destination = address(to)?,
                RouteAttribute::Gateway(through) => gateway = address(through),
                _ => {}
            }
        }
        Some((IpNet::new(destination, message.header.destination_prefix_length).ok()?, gateway))
    };
    Ok(messages.into_iter().filter_map(read).collect())
}

/// Names of the ports of a bridge.
pub(crate) async fn ports(handle: &Handle, bridge: u32) -> Result<Vec<String>, Error> {
    let stream = handle.link().get().execute();
    let messages: Vec<LinkMessage> =
        stream.try_collect().await.map_err(|error| failed("list", "interfaces", &error))?;
    let is_port = |message: &LinkMessage| message.attributes.contains(&LinkAttribute::Controller(bridge));
    let name = |message: LinkMessage| {
        message.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
    };
    Ok(messages.into_iter().filter(is_port).filter_map(name).collect())
}

/// Writes 1 to a file below /proc/sys. Only when needed: for some of them the kernel walks every interface on a write, even of the
/// same value.
pub(crate) fn write_sysctl(name: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/{name}");
    if fs::read(&path).is_ok_and(|value| value.starts_with(b"1")) {
        return Ok(());
    }
    fs::write(&path, "1").map_err(|error| Error::new(code::IO, format!("write {path}: {error}")))
}

/// `0a:58:0a:01:00:05`
///
/// # Errors
/// Not six bytes, or of a group.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    let invalid = || Error::new(code::INVALID_CONFIG, format!("\"{text}\" is not a MAC address"));
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).map_err(|_| invalid())).collect::<Result<_, _>>()?;
    let mac: [u8; 6] = bytes.try_into().map_err(|_| invalid())?;
    if mac[0] & 1 == 0 { Ok(mac) } else { Err(invalid()) }
}

pub(crate) fn format_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

pub(crate) fn failed(what: &str, subject: &str, error: &rtnetlink::Error) -> Error {
    let cause = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    Error::new(code::KERNEL, format!("{what} {subject}: {cause}"))
}
