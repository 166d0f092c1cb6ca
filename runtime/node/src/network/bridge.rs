//! Networks that are bridges of this machine's own, which no conf list describes: those of the
//! engine. They go the way of all others: a conf list is made for them (`conf`), and berth-bridge run
//! with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The addresses of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub net: IpNet,
    pub gateway: IpAddr,
    /// The part of it whose addresses are given to those who ask for none.
    pub range: Option<IpNet>,
    /// Addresses that are nobody's to be given.
    pub reserved: Vec<IpAddr>,
}

impl Subnet {
    pub fn new(net: IpNet, gateway: IpAddr) -> Self {
        Self { net: net.trunc(), gateway, range: None, reserved: Vec::new() }
    }

    /// The range set of host-local from which addresses are chosen: what is between those that are
    /// reserved.
    pub(super) fn range_set(&self) -> Value {
        let whole = self.range.unwrap_or(self.net);
        let mut reserved: Vec<u128> = self.reserved.iter().copied().map(number).collect();
        reserved.sort_unstable();
        let (mut start, end) = (number(whole.network()), number(whole.broadcast()));
        // Those at the ends of the whole subnet are the plugin's business.
        if reserved.is_empty() && self.range.is_none() {
            return json!([{ "subnet": self.net, "gateway": self.gateway }]);
        }
        let mut ranges = Vec::new();
        for taken in reserved {
            if (start..=end).contains(&taken) {
                ranges.extend(self.part(start, taken.saturating_sub(1)));
                start = taken + 1;
            }
        }
        ranges.extend(self.part(start, end));
        json!(ranges)
    }

    /// A range of host-local, without the first and the last address of the subnet. `None` if
    /// nothing is left of it.
    fn part(&self, start: u128, end: u128) -> Option<Value> {
        let start = start.max(number(self.net.network()) + 1);
        let end = end.min(number(self.net.broadcast()) - 1);
        (start <= end).then(|| {
            json!({
                "subnet": self.net,
                "rangeStart": self.address(start),
                "rangeEnd": self.address(end),
                "gateway": self.gateway,
            })
        })
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.net {
            IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// A bridge, and what a container wants of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The name of the container's interface: `eth0` for the first one.
    pub inside: String,
    /// The name of the network, which no other network of the machine has.
    pub network: String,
    /// The name of the interface.
    pub interface: String,
    /// A container gets one address of each.
    pub subnets: Vec<Subnet>,
    /// Neither a route to the outside, nor a way in.
    pub internal: bool,
    /// Whether what its containers send has the host's address outside.
    pub masquerades: bool,
    /// Whether its containers cannot reach each other.
    pub isolates_ports: bool,
    pub mtu: Option<u32>,
    /// Whether the container's default route leads here, and the ports of the host.
    pub is_default: bool,
    /// The addresses and the MAC address that are asked for.
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_chosen_between_those_that_are_reserved() {
        let mut subnet = Subnet::new("10.1.0.0/29".parse().unwrap(), "10.1.0.1".parse().unwrap());
        let parts = |subnet: &Subnet| {
            let set = subnet.range_set();
            let text = |range: &Value, key: &str| range[key].as_str().unwrap_or("-").to_owned();
            let parts = set.as_array().unwrap().iter();
            parts
                .map(|range| text(range, "rangeStart") + ".." + &text(range, "rangeEnd"))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(&subnet), ["-..-"]);
        subnet.reserved = vec!["10.1.0.4".parse().unwrap(), "10.1.0.2".parse().unwrap()];
        assert_eq!(
            parts(&subnet),
            ["10.1.0.1..10.1.0.1", "10.1.0.3..10.1.0.3", "10.1.0.5..10.1.0.6"]
        );
        subnet.range = Some("10.1.0.4/30".parse().unwrap());
        assert_eq!(parts(&subnet), ["10.1.0.5..10.1.0.6"]);
    }
}
