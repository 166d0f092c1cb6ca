//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_cni::{Error, Route, code};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::request::{dump, failed, is};

/// Adds a route; success when it is there already.
pub(crate) async fn add(handle: &Handle, index: u32, route: &Route) -> Result<(), Error> {
    match handle.route().add(route_message(index, route)?).execute().await {
        // EEXIST: IPAM may name a route twice, or one that the kernel has made for an address.
        Err(error) if !is(&error, nix::libc::EEXIST) => {
            Err(failed("add route", &route.dst.to_string(), &error))
        }
        _ => Ok(()),
    }
}

/// Removes a route; success when it is not there.
pub(crate) async fn delete(handle: &Handle, index: u32, route: &Route) -> Result<(), Error> {
    match handle.route().del(route_message(index, route)?).execute().await {
        Err(error) if !is(&error, nix::libc::ESRCH) => {
            Err(failed("delete route", &route.dst.to_string(), &error))
        }
        _ => Ok(()),
    }
}

/// A route without a gateway leads to addresses that are reached directly, which the kernel calls
/// scope link.
fn route_message(index: u32, route: &Route) -> Result<RouteMessage, Error> {
    let invalid =
        |error: String| Error::new(code::INVALID_CONFIG, format!("route {}: {error}", route.dst));
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

/// Destination and gateway of all routes of a family.
pub(crate) async fn list(handle: &Handle, v4: bool) -> Result<Vec<(IpNet, Option<IpAddr>)>, Error> {
    let filter = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let messages = dump(handle, "routes", RouteNetlinkMessage::GetRoute(filter)).await?;
    Ok(messages.into_iter().filter_map(|message| read(message, v4)).collect())
}

/// Destination and gateway of a route, if it is one.
fn read(message: RouteNetlinkMessage, v4: bool) -> Option<(IpNet, Option<IpAddr>)> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    // A default route has no destination attribute.
    let mut destination: IpAddr =
        if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address(to)?,
            RouteAttribute::Gateway(through) => gateway = address(through),
            _ => {}
        }
    }
    Some((IpNet::new(destination, message.header.destination_prefix_length).ok()?, gateway))
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
