//! Networks that are bridges of this machine's own, which no conf list describes: those of the
//! engine. They go the way of all others: a conf list is made for them (`conf`), and berth-bridge run
//! with it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
