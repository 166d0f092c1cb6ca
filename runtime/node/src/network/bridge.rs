//! Networks that are bridges of this machine's own, which no conf list describes: those of the
//! engine. They go the way of all others: a conf list is made for them, and berth-bridge run with it.

use std::{net::IpAddr, path::Path};

use berth_cni::ConfList;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::conf::Network;

/// A bridge, and what a container wants of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The name of the network, which no other network of the machine has.
    pub network: String,
    /// The name of the interface.
    pub interface: String,
    /// Each with the gateway's address. A container gets one address of each.
    pub subnets: Vec<(IpNet, IpAddr)>,
    /// Neither a route to the outside, nor a way in.
    pub internal: bool,
    /// The addresses and the MAC address that are asked for.
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
}

impl Bridge {
    /// `ipam` is where the reservations of addresses are.
    pub(super) fn network(&self, ipam: &Path) -> Network {
        let ranges: Value = self
            .subnets
            .iter()
            .map(|(subnet, gateway)| json!([{ "subnet": subnet.trunc(), "gateway": gateway }]))
            .collect();
        let text = json!({
            "cniVersion": berth_cni::VERSION,
            "name": self.network,
            "plugins": [{
                "type": "berth-bridge",
                "bridge": self.interface,
                "isGateway": true,
                "isDefaultGateway": !self.internal,
                "ipMasq": !self.internal,
                "isolation": if self.internal { "internal" } else { "closed" },
                "capabilities": { "portMappings": true, "mac": true, "ips": true },
                "ipam": {
                    "type": "berth-local",
                    "ranges": ranges,
                    "dataDir": ipam,
                    "lowestFirst": true,
                },
            }],
        })
        .to_string();
        let list = ConfList::parse(&text).expect("our own conf list is one");
        Network { list, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_a_conf_list_of_one_plugin() {
        let bridge = Bridge {
            network: "abc".to_owned(),
            interface: "docker0".to_owned(),
            subnets: vec![("172.17.0.0/16".parse().unwrap(), [172, 17, 0, 1].into())],
            internal: false,
            addresses: Vec::new(),
            mac: None,
        };
        let list = bridge.network(Path::new("/x")).list;
        let plugin = json!(list.plugins[0]);
        assert_eq!((list.name.as_str(), &plugin["bridge"]), ("abc", &json!("docker0")));
        assert_eq!(
            plugin["ipam"]["ranges"],
            json!([[{ "subnet": "172.17.0.0/16", "gateway": "172.17.0.1" }]])
        );
        assert_eq!((&plugin["ipMasq"], &plugin["isolation"]), (&json!(true), &json!("closed")));
    }
}
