//! Which addresses a bridge has: the first pool that nothing else of this machine uses.

use std::{fs, io, net::Ipv4Addr};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};

use super::object::Network;

/// A route of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub interface: String,
    pub destination: Ipv4Net,
}

/// The routes of this machine but for the default one.
///
/// # Errors
/// /proc does not have them.
pub(crate) fn routes() -> io::Result<Vec<Route>> {
    Ok(parse(&fs::read_to_string("/proc/net/route")?))
}

/// Reads /proc/net/route: interface, destination and, as the eighth field, the mask. The numbers are
/// hexadecimal, of addresses in network order that were read in that of the host.
fn parse(text: &str) -> Vec<Route> {
    let address = |hex: &str| {
        u32::from_str_radix(hex, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()))
    };
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (destination, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
        let destination = Ipv4Net::with_netmask(destination, mask).ok()?;
        (destination.prefix_len() > 0)
            .then(|| Route { interface: fields[0].to_owned(), destination })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// The subnet of the interface `bridge` with the gateway's address: the one that the interface has,
/// else the one that it had before, else the first free pool.
///
/// # Errors
/// All pools are in use.
pub(crate) fn choose(
    before: Option<IpNet>,
    bridge: &str,
    routes: &[Route],
    taken: &[Ipv4Net],
) -> anyhow::Result<IpNet> {
    let own = routes.iter().find(|route| route.interface == bridge);
    if let Some(route) = own {
        return Ok(with_gateway(route.destination));
    }
    let used: Vec<Ipv4Net> =
        routes.iter().map(|route| route.destination).chain(taken.iter().copied()).collect();
    let is_free = |net: &Ipv4Net| !used.iter().any(|used| overlap(&(*used).into(), &(*net).into()));
    if let Some(IpNet::V4(net)) = before
        && is_free(&net.trunc())
    {
        return Ok(with_gateway(net.trunc()));
    }
    pools().find(is_free).map(with_gateway).context("all predefined address pools are in use")
}

/// Whether an address is in both.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The subnets in IPv4 that networks have, whether there is an interface for them or not.
pub(crate) fn taken<'a>(networks: impl IntoIterator<Item = &'a Network>) -> Vec<Ipv4Net> {
    let pools = networks.into_iter().flat_map(|network| &network.pools);
    pools
        .filter_map(|pool| match pool.subnet {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        })
        .collect()
}

/// dockerd's pools: 172.17.0.0/16 to 172.31.0.0/16, and 192.168.0.0/16 in parts of 4096 addresses.
fn pools() -> impl Iterator<Item = Ipv4Net> {
    let large = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..=240).step_by(16).map(|third| (Ipv4Addr::new(192, 168, third, 0), 20));
    large.chain(small).map(|(address, length)| Ipv4Net::new_assert(address, length))
}

/// The gateway is the first address.
fn with_gateway(net: Ipv4Net) -> IpNet {
    let first = Ipv4Addr::from(u32::from(net.network()) + 1);
    IpNet::V4(Ipv4Net::new_assert(first, net.prefix_len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
        eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn the_first_pool_that_nobody_uses_is_taken() {
        let routes = parse(ROUTES);
        let chosen = |before: Option<&str>, routes: &[Route]| {
            let before = before.map(|text| text.parse().unwrap());
            choose(before, "docker0", routes, &[]).unwrap().to_string()
        };
        assert_eq!(routes[0].destination.to_string(), "172.17.0.0/16");
        assert_eq!(chosen(None, &[]), "172.17.0.1/16");
        assert_eq!(chosen(None, &routes), "172.18.0.1/16");
        assert_eq!(chosen(Some("172.20.0.1/16"), &routes), "172.20.0.1/16");
        assert_eq!(chosen(Some("172.17.0.1/16"), &routes), "172.18.0.1/16");
        // What the bridge has counts most: containers of an earlier daemon may be on it.
        let own = [Route { interface: "docker0".to_owned(), ..routes[0].clone() }];
        assert_eq!(chosen(Some("172.20.0.1/16"), &own), "172.17.0.1/16");
        assert_eq!(pools().count(), 31);
    }
}
