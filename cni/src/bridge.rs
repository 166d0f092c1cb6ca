//! ADD as steps that ensure, DEL as its idempotent undo, CHECK as a comparison, GC as DEL of everybody who left.

use std::{fs::File, net::IpAddr, os::fd::AsFd};

use berth_cni::{Attachment, Error, Interface, Ip, Route, Success, code};
use ipnet::IpNet;
use rtnetlink::Handle;
use serde_json::{Value, json};

use crate::{
    Args,
    conf::{Conf, Trunk},
    guard,
    ipam::{self, Lease},
    link::{self, Bridge, Link, Pair},
    netns, portmap, rules, shaper,
};

/// Attaches the namespace of `args`, or leaves nothing.
pub(crate) async fn add(conf: &Conf, args: &Args) -> Result<Success, Error> {
    let result = attach(conf, args).await;
    if result.is_err() {
        // The first error is the one to tell; a runtime calls DEL after it anyway.
        let _ = del(conf, &Args { netns_ends: false, ..args.clone() }).await;
    }
    result
}

async fn attach(conf: &Conf, args: &Args) -> Result<Success, Error> {
    let netns = open_netns(args)?;
    let lease = ipam::add(conf, args)?;
    let gateways = gateways(conf, &lease.ips);
    let mac = match conf.mac().or(args.mac.as_deref()) {
        Some(text) => Some(link::parse_mac(text)?),
        None => lease.ips.first().map(|ip| mac(ip.address.addr())),
    };
    let host = netns::here()?;
    let filters_vlans = conf.vlan != 0 || !conf.vlan_trunk.is_empty();
    let settings = Bridge {
        name: &conf.bridge,
        mac: gateways.first().map_or_else(|| bridge_mac(&conf.bridge), |gateway| self::mac(gateway.addr())),
        mtu: conf.mtu,
        promiscuous: conf.promisc_mode,
        filters_vlans,
    };
    let bridge = link::ensure_bridge(&host, &settings).await?;
    if conf.serves_gateway() {
        serve_gateways(conf, &host, &bridge, &gateways).await?;
    }
    let port = args.port(conf);
    let pair =
        Pair { host: &port, inside: &args.ifname, netns: netns.as_fd(), bridge: bridge.index, mac, mtu: conf.mtu };
    link::add_pair(&host, &pair).await?;
    let port = find(&host, &port).await?;
    // Where bridged packets meet the rules (br_netfilter), a pod that asks for its own port of the host is sent back at once.
    let hairpin = conf.hairpin_mode || (!conf.runtime_config.port_mappings.is_empty() && !conf.promisc_mode);
    link::start_port(&host, port.index, hairpin, conf.port_isolation).await?;
    if filters_vlans {
        let trunks: Result<Vec<_>, String> = conf.vlan_trunk.iter().map(Trunk::ids).collect();
        let trunks = trunks.map_err(|msg| Error::new(code::INVALID_CONFIG, msg))?;
        link::set_vlans(&host, port.index, conf.vlan, &trunks, conf.preserve_default_vlan).await?;
    }
    let routes = routes(conf, &lease, &gateways);
    let inside = configure(conf, args, &netns, &lease.ips, &routes).await?;
    if conf.macspoofchk {
        guard::add(&args.owner(conf), &args.port(conf), link::parse_mac(&inside.mac)?)?;
    }
    if conf.ip_masq {
        lease.ips.iter().try_for_each(|ip| rules::masquerade(ip.address))?;
    }
    portmap::add(conf, args, &lease.ips)?;
    if let Some(limits) = &conf.runtime_config.bandwidth {
        shaper::add(&host, (&args.port(conf), port.index), &args.ifb(conf), limits).await?;
    }
    Ok(success(conf, args, lease, routes, &[bridge, port, inside]))
}

fn open_netns(args: &Args) -> Result<File, Error> {
    let path = args.netns.as_deref().unwrap_or_default();
    File::open(path).map_err(|error| Error::new(code::UNKNOWN_CONTAINER, format!("network namespace {path}: {error}")))
}

async fn find(handle: &Handle, name: &str) -> Result<Link, Error> {
    link::find(handle, name).await?.ok_or_else(|| Error::new(code::KERNEL, format!("{name} vanished")))
}

/// Where the bridge answers for pods: the gateway of each address, with its prefix.
fn gateways(conf: &Conf, ips: &[Ip]) -> Vec<IpNet> {
    if !conf.serves_gateway() {
        return Vec::new();
    }
    let gateway = |ip: &Ip| {
        let first = crate::conf::plus(ip.address.network(), 1);
        IpNet::new_assert(ip.gateway.unwrap_or(first), ip.address.prefix_len())
    };
    ips.iter().map(gateway).collect()
}

/// A locally administered address that tells which IP address it is for. The same address has the same MAC address the next time, so
/// that nobody's neighbour table is wrong when another pod gets it.
fn mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Of a bridge without an address, by its name.
fn bridge_mac(name: &str) -> [u8; 6] {
    let [a, b, c, d, ..] = hash(name.as_bytes()).to_be_bytes();
    [0x0a, 0x59, a, b, c, d]
}

/// The bridge, or its interface in the pods' VLAN, answers for the gateways' addresses, and the host forwards.
async fn serve_gateways(conf: &Conf, host: &Handle, bridge: &Link, gateways: &[IpNet]) -> Result<(), Error> {
    let name = conf.gateway_interface();
    let index = if conf.vlan == 0 { bridge.index } else { vlan_interface(conf, host, bridge, &name).await?.index };
    for gateway in gateways {
        link::own_address(host, (&name, index), *gateway, gateways, conf.force_address).await?;
        match gateway {
            IpNet::V4(_) => link::write_sysctl("net/ipv4/ip_forward")?,
            IpNet::V6(_) => link::write_sysctl("net/ipv6/conf/all/forwarding")?,
        }
    }
    Ok(())
}

/// An interface of the host in a VLAN of the bridge: one end of a pair whose other end is a port, as upstream has it.
async fn vlan_interface(conf: &Conf, host: &Handle, bridge: &Link, name: &str) -> Result<Link, Error> {
    if let Some(link) = link::find(host, name).await? {
        return Ok(link);
    }
    let own =
        File::open("/proc/self/ns/net").map_err(|error| Error::new(code::IO, format!("own namespace: {error}")))?;
    let port = format!("v{:014x}", hash(name.as_bytes()) >> 8);
    let pair = Pair { host: &port, inside: name, netns: own.as_fd(), bridge: bridge.index, mac: None, mtu: conf.mtu };
    let made = link::add_pair(host, &pair).await;
    let link = link::find(host, name).await?;
    // Another ADD may have been first.
    let Some(link) = link else {
        return Err(made.err().unwrap_or_else(|| Error::new(code::KERNEL, format!("{name} vanished"))));
    };
    let port = find(host, &port).await?;
    link::set_vlans(host, port.index, conf.vlan, &[], conf.preserve_default_vlan).await?;
    link::start_port(host, port.index, false, false).await?;
    link::bring_up(host, link.index).await?;
    Ok(link)
}

/// Addresses and routes inside the namespace.
async fn configure(conf: &Conf, args: &Args, netns: &File, ips: &[Ip], routes: &[Route]) -> Result<Link, Error> {
    let inside = netns::inside(netns)?;
    let interface = find(&inside, &args.ifname).await?;
    if conf.disable_container_interface {
        return Ok(interface);
    }
    if ips.iter().all(|ip| ip.address.addr().is_ipv4()) {
        link::no_link_local(&inside, interface.index).await;
    }
    for ip in ips {
        link::add_address(&inside, interface.index, ip.address, conf.enabledad).await?;
    }
    link::bring_up(&inside, interface.index).await?;
    if conf.enabledad {
        link::settle(&inside, interface.index).await?;
    }
    for route in routes {
        link::add_route(&inside, interface.index, route).await?;
    }
    Ok(interface)
}

/// Those of IPAM, through the gateway of their family where they name none, and the default ones when the bridge is that.
fn routes(conf: &Conf, lease: &Lease, gateways: &[IpNet]) -> Vec<Route> {
    let of_family = |v4: bool| lease.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == v4);
    let mut routes: Vec<Route> = lease
        .routes
        .iter()
        .map(|route| Route { gw: route.gw.or_else(|| of_family(route.dst.addr().is_ipv4())), ..route.clone() })
        .collect();
    if conf.is_default_gateway {
        for gateway in gateways {
            let any: IpAddr = if gateway.addr().is_ipv4() { [0; 4].into() } else { [0_u8; 16].into() };
            let dst = IpNet::new_assert(any, 0);
            if !routes.iter().any(|route| route.dst == dst) {
                let others = Default::default();
                routes.push(Route { dst, gw: Some(gateway.addr()), priority: None, table: None, others });
            }
        }
    }
    routes
}

fn success(conf: &Conf, args: &Args, lease: Lease, routes: Vec<Route>, links: &[Link; 3]) -> Success {
    let names = [conf.bridge.clone(), args.port(conf), args.ifname.clone()];
    let sandboxes = [String::new(), String::new(), args.netns.clone().unwrap_or_default()];
    let interfaces = names.into_iter().zip(sandboxes).zip(links);
    let gateway =
        |ip: &Ip| ip.gateway.filter(|_| conf.serves_gateway() || !matches!(conf.ipam, crate::conf::Ipam::Local(_)));
    let dns = conf.dns.clone().filter(has_entries).or(Some(lease.dns).filter(has_entries));
    Success {
        cni_version: conf.cni_version.clone(),
        interfaces: interfaces
            .map(|((name, sandbox), link)| Interface { name, mac: link.mac.clone(), mtu: conf.mtu, sandbox })
            .collect(),
        ips: lease.ips.iter().map(|ip| Ip { interface: Some(2), address: ip.address, gateway: gateway(ip) }).collect(),
        routes,
        dns: dns.unwrap_or_else(|| json!({})),
    }
}

fn has_entries(value: &Value) -> bool {
    value.as_object().is_some_and(|entries| !entries.is_empty())
}

/// Undoes ADD, whatever of it happened. Needs neither `prevResult` nor the namespace.
pub(crate) async fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    // Before the address can be another pod's.
    portmap::del(conf, args)?;
    guard::del(&args.owner(conf))?;
    let host = netns::here()?;
    link::delete(&host, &args.ifb(conf)).await?;
    // The kernel deletes the link with its namespace, in the background; here the caller would wait for it.
    if !(args.netns_ends && args.netns.is_some()) {
        link::delete(&host, &args.port(conf)).await?;
    }
    ipam::del(conf, args)
}

/// Compares what ADD made with what is there.
pub(crate) async fn check(conf: &Conf, args: &Args) -> Result<(), Error> {
    let drift = |what: String| Error::new(code::DRIFT, what);
    let (ips, given_routes) = match &conf.prev_result {
        Some(result) => (result.ips.clone(), result.routes.clone()),
        None => (ipam::reserved(conf, args)?, Vec::new()),
    };
    let netns = open_netns(args)?;
    ipam::check(conf, args, &ips)?;
    let host = netns::here()?;
    let bridge = link::find(&host, &conf.bridge).await?.filter(|link| link.is_bridge && link.is_up);
    let bridge = bridge.ok_or_else(|| drift(format!("bridge {} is missing or down", conf.bridge)))?;
    let gateways = gateways(conf, &ips);
    let name = conf.gateway_interface();
    let gate = if conf.vlan == 0 { Some(bridge.clone()) } else { link::find(&host, &name).await? };
    let gate = gate.ok_or_else(|| drift(format!("{name} is missing")))?;
    let own = link::addresses(&host, gate.index).await?;
    if let Some(gateway) = gateways.iter().find(|gateway| !own.contains(&gateway.addr())) {
        return Err(drift(format!("{name} has not the address {gateway}")));
    }
    let name = args.port(conf);
    let port = link::find(&host, &name).await?.filter(|link| link.is_up);
    let port = port.ok_or_else(|| drift(format!("{name} is missing or down")))?;
    if port.controller != Some(bridge.index) {
        return Err(drift(format!("{name} is not a port of {}", conf.bridge)));
    }
    let inside = netns::inside(&netns)?;
    let interface = link::find(&inside, &args.ifname).await?;
    let interface = interface.filter(|link| link.is_up || conf.disable_container_interface);
    let interface = interface.ok_or_else(|| drift(format!("{} is missing or down", args.ifname)))?;
    let own = link::addresses(&inside, interface.index).await?;
    if let Some(ip) = ips.iter().find(|ip| !own.contains(&ip.address.addr())) {
        return Err(drift(format!("{} has not the address {}", args.ifname, ip.address)));
    }
    let lease = Lease { ips: ips.clone(), routes: given_routes, dns: Value::Null };
    check_routes(&inside, &routes(conf, &lease, &gateways)).await?;
    for ip in &ips {
        if conf.ip_masq && !rules::is_masqueraded(ip.address)? {
            return Err(drift(format!("{} is not masqueraded", ip.address.trunc())));
        }
    }
    if conf.macspoofchk {
        guard::check(&args.owner(conf), &name, link::parse_mac(&interface.mac)?)?;
    }
    portmap::check(conf, args, &ips)
}

async fn check_routes(inside: &Handle, wanted: &[Route]) -> Result<(), Error> {
    let mut there = Vec::new();
    for v4 in [true, false] {
        there.extend(link::routes(inside, v4).await?);
    }
    let is_there = |route: &&Route| there.contains(&(route.dst.trunc(), route.gw));
    match wanted.iter().filter(|route| route.table.is_none()).find(|route| !is_there(route)) {
        Some(route) => {
            let through = route.gw.map(|gateway| format!(" through {gateway}")).unwrap_or_default();
            Err(Error::new(code::DRIFT, format!("no route to {}{through}", route.dst)))
        }
        None => Ok(()),
    }
}

/// DEL for everybody of this network who is not among the valid ones.
pub(crate) async fn collect_garbage(conf: &Conf, args: &Args) -> Result<(), Error> {
    portmap::collect_garbage(conf)?;
    guard::collect_garbage(conf)?;
    let host = netns::here()?;
    if let Some(bridge) = link::find(&host, &conf.bridge).await? {
        let valid: Vec<String> = conf.valid_attachments.iter().map(|attachment| port(conf, attachment)).collect();
        let network = port_prefix(conf);
        let is_stale = |name: &String| name.len() == PORT && name.starts_with(&network) && !valid.contains(name);
        for name in link::ports(&host, bridge.index).await?.into_iter().filter(is_stale) {
            link::delete(&host, &ifb(&name)).await?;
            link::delete(&host, &name).await?;
        }
    }
    ipam::collect_garbage(conf, args)
}

impl Args {
    pub(crate) fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// The host's end, named by network, container and interface, so that DEL finds it without a namespace, and GC too.
    fn port(&self, conf: &Conf) -> String {
        port(conf, &self.attachment())
    }

    /// The interface through which a pod with limits sends.
    fn ifb(&self, conf: &Conf) -> String {
        ifb(&self.port(conf))
    }

    /// As rules name it in their comments.
    pub(crate) fn owner(&self, conf: &Conf) -> String {
        format!("{} {} {}", self.container_id, self.ifname, conf.name)
    }
}

/// As long as a name may be.
const PORT: usize = 15;

fn port(conf: &Conf, attachment: &Attachment) -> String {
    let name = [attachment.container_id.as_bytes(), b"/", attachment.ifname.as_bytes()].concat();
    format!("{}{:010x}", port_prefix(conf), hash(&name) & 0xff_ffff_ffff)
}

fn port_prefix(conf: &Conf) -> String {
    format!("b{:04x}", hash(conf.name.as_bytes()) & 0xffff)
}

fn ifb(port: &str) -> String {
    format!("i{}", port.get(1..).unwrap_or_default())
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
