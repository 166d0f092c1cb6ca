//! The verbs of CNI for a bridge: ADD in steps, DEL as their idempotent undo, CHECK as a comparison
//! of what is there with what ADD made, and GC as DEL of all who left.

use std::{fs::File, net::IpAddr, os::fd::AsFd};

use berth_cni::{Error, Interface, Ip, Route, Success, code};
use ipnet::IpNet;
use rtnetlink::Handle;
use serde_json::{Value, json};

use crate::{
    args::Args,
    bandwidth,
    conf::{self, Conf, Trunk},
    ipam::{self, Lease},
    isolation, macspoof, names, netfilter,
    netlink::{
        address,
        bridge::{self, Bridge},
        link::{self, Link, Pair},
        netns, route, vlan,
    },
    nft::rules,
    portmap,
    steps::{At, begin},
    sysctl,
};

/// Attaches the namespace of `args`, or leaves nothing.
pub(crate) async fn add(conf: &Conf, args: &Args) -> Result<Success, Error> {
    let result = attach(conf, args).await;
    if result.is_err() {
        // The error of the step that failed is the one to report; an error of this DEL would hide
        // it, and a runtime calls DEL after a failed ADD anyway. The namespace stays, so the link
        // has to be deleted here.
        let _ = del(conf, &Args { netns_ends: false, ..args.clone() }).await;
    }
    result
}

async fn attach(conf: &Conf, args: &Args) -> Result<Success, Error> {
    // First, because a namespace that is gone must not cost an address.
    let netns = open_netns(args)?;
    begin(At::AddLease)?;
    let lease = ipam::add(conf, args)?;
    let gateways = gateways(conf, &lease.ips);
    let mac = match conf.mac().or(args.mac.as_deref()) {
        Some(text) => Some(link::parse_mac(text)?),
        None => lease.ips.first().map(|ip| mac_of(ip.address.addr())),
    };
    let host = netns::here()?;
    let settings = settings(conf, &gateways);
    begin(At::AddBridge)?;
    let bridge = bridge::ensure(&host, &settings).await?;
    if conf.serves_gateway() {
        begin(At::AddGateway)?;
        serve_gateways(conf, &host, &bridge, &gateways).await?;
    }
    // The veth pair is made with one end in the pod's namespace and the other in the bridge, so
    // that no step in between can fail and leave half of it.
    let port_name = names::port(conf, &args.attachment());
    let pair = Pair {
        host: &port_name,
        inside: &args.ifname,
        netns: netns.as_fd(),
        bridge: bridge.index,
        mac,
        mtu: conf.mtu,
    };
    begin(At::AddLink)?;
    add_pair(&host, &pair, &netns).await?;
    begin(At::AddPort)?;
    let port = find(&host, &port_name).await?;
    // With br_netfilter, bridged packets pass the rules of nftables. A pod that connects to its own
    // port of the host is translated there, and its packet has to leave by the port that it came
    // in through.
    let hairpin = conf.hairpin_mode || (!conf.port_mappings().is_empty() && !conf.promisc_mode);
    bridge::start_port(&host, port.index, hairpin, conf.port_isolation).await?;
    if settings.filters_vlans {
        let trunks: Result<Vec<_>, String> = conf.vlan_trunk.iter().map(Trunk::ids).collect();
        let trunks = trunks.map_err(|msg| Error::new(code::INVALID_CONFIG, msg))?;
        vlan::set(&host, port.index, conf.vlan, &trunks, conf.preserve_default_vlan).await?;
    }
    let routes = routes(conf, &lease, &gateways);
    begin(At::AddConfigure)?;
    let inside = configure(conf, args, &netns, &lease.ips, &routes).await?;
    if conf.macspoofchk {
        // The address as the kernel has it: a pod without IP addresses got a random one.
        macspoof::add(&names::owner(conf, args), &port_name, link::parse_mac(&inside.mac)?)?;
    }
    if conf.ip_masq {
        begin(At::AddMasquerade)?;
        lease.ips.iter().try_for_each(|ip| rules::masquerade(ip.address))?;
    }
    isolation::ensure(conf)?;
    // From here on the pod can be reached from outside.
    begin(At::AddPorts)?;
    portmap::add(conf, args, &lease.ips)?;
    if let Some(limits) = &conf.runtime_config.bandwidth {
        begin(At::AddBandwidth)?;
        bandwidth::add(&host, (&port_name, port.index), &names::ifb(&port_name), limits).await?;
    }
    Ok(success(conf, args, lease, routes, &[bridge, port, inside]))
}

/// What the bridge has to be like, as the gateway of these networks.
pub(crate) fn settings<'a>(conf: &'a Conf, gateways: &[IpNet]) -> Bridge<'a> {
    Bridge {
        name: &conf.bridge,
        mac: match gateways.first() {
            Some(gateway) => mac_of(gateway.addr()),
            None => names::bridge_mac(&conf.bridge),
        },
        mtu: conf.mtu,
        promiscuous: conf.promisc_mode,
        filters_vlans: conf.vlan != 0 || !conf.vlan_trunk.is_empty(),
    }
}

/// Makes a veth pair, in the place of one that the kernel is about to delete if need be: a container
/// that starts anew has the same port, and that of the namespace before may be there still
/// (`netns_ends`).
async fn add_pair(host: &Handle, pair: &Pair<'_>, netns: &File) -> Result<(), Error> {
    let Err(error) = link::add_pair(host, pair).await else { return Ok(()) };
    // A second ADD of the same interface is an error, and what the first made stays.
    if link::find(&netns::inside(netns)?, pair.inside).await?.is_some() {
        return Err(error);
    }
    // Tried again in any case. That the port is not there now says nothing: the kernel may have
    // deleted it a moment after it was in the way.
    link::delete(host, pair.host).await?;
    link::add_pair(host, pair).await
}

pub(crate) fn open_netns(args: &Args) -> Result<File, Error> {
    let path = args.netns.as_deref().unwrap_or_default();
    File::open(path).map_err(|error| {
        Error::new(code::UNKNOWN_CONTAINER, format!("network namespace {path}: {error}"))
    })
}

pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Link, Error> {
    link::find(handle, name)
        .await?
        .ok_or_else(|| Error::new(code::KERNEL, format!("{name} vanished")))
}

/// The addresses that the host has for the pods: the gateway of each of `ips`, with its prefix
/// length. None when the host is not their gateway.
pub(crate) fn gateways(conf: &Conf, ips: &[Ip]) -> Vec<IpNet> {
    if !conf.serves_gateway() {
        return Vec::new();
    }
    let gateway_of = |ip: &Ip| {
        // As upstream: an IPAM plugin that names no gateway means the first address.
        let first = conf::plus(ip.address.network(), 1);
        IpNet::new_assert(ip.gateway.unwrap_or(first), ip.address.prefix_len())
    };
    ips.iter().map(gateway_of).collect()
}

/// A locally administered MAC address that is computed from an IP address. Whoever gets the IP
/// address next has the same MAC address, so that the neighbour tables of other pods stay right.
fn mac_of(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Gives the gateways' addresses to the bridge, or to its interface in the pods' VLAN, and lets the
/// host forward packets.
pub(crate) async fn serve_gateways(
    conf: &Conf,
    host: &Handle,
    bridge: &Link,
    gateways: &[IpNet],
) -> Result<(), Error> {
    let name = conf.gateway_interface();
    let index = if conf.vlan == 0 {
        bridge.index
    } else {
        vlan_interface(conf, host, bridge, &name).await?.index
    };
    for gateway in gateways {
        address::own(host, (&name, index), *gateway, gateways, conf.force_address).await?;
        match gateway {
            IpNet::V4(_) => sysctl::enable("net/ipv4/ip_forward")?,
            IpNet::V6(_) => sysctl::enable("net/ipv6/conf/all/forwarding")?,
        }
    }
    Ok(())
}

/// The host's interface in a VLAN of the bridge: one end of a veth pair whose other end is a port
/// of the bridge, as upstream makes it.
async fn vlan_interface(
    conf: &Conf,
    host: &Handle,
    bridge: &Link,
    name: &str,
) -> Result<Link, Error> {
    if let Some(link) = link::find(host, name).await? {
        return Ok(link);
    }
    let own = File::open("/proc/self/ns/net")
        .map_err(|error| Error::new(code::IO, format!("own namespace: {error}")))?;
    let port = names::vlan_port(name);
    let pair = Pair {
        host: &port,
        inside: name,
        netns: own.as_fd(),
        bridge: bridge.index,
        mac: None,
        mtu: conf.mtu,
    };
    let made = link::add_pair(host, &pair).await;
    let link = link::find(host, name).await?;
    // Of two first ADDs at the same time one finds the pair made (EEXIST), which is just as well.
    let Some(link) = link else {
        return Err(made
            .err()
            .unwrap_or_else(|| Error::new(code::KERNEL, format!("{name} vanished"))));
    };
    let port = find(host, &port).await?;
    vlan::set(host, port.index, conf.vlan, &[], conf.preserve_default_vlan).await?;
    bridge::start_port(host, port.index, false, false).await?;
    link::bring_up(host, link.index).await?;
    Ok(link)
}

/// Gives the pod's interface its addresses and routes, inside the namespace, and brings it up.
async fn configure(
    conf: &Conf,
    args: &Args,
    netns: &File,
    ips: &[Ip],
    routes: &[Route],
) -> Result<Link, Error> {
    let inside = netns::inside(netns)?;
    let interface = find(&inside, &args.ifname).await?;
    if conf.disable_container_interface {
        return Ok(interface);
    }
    if ips.iter().all(|ip| ip.address.addr().is_ipv4()) {
        // Without IPv6 addresses the pod has no use for a link-local one.
        link::no_link_local(&inside, interface.index).await;
    }
    for ip in ips {
        address::add(&inside, interface.index, ip.address, conf.enabledad).await?;
    }
    // Routes are added once the interface is up: the kernel refuses them while it is down
    // (ENETDOWN).
    link::bring_up(&inside, interface.index).await?;
    if conf.enabledad {
        address::wait_for_dad(&inside, interface.index).await?;
    }
    for route in routes {
        route::add(&inside, interface.index, route).await?;
    }
    Ok(interface)
}

/// The pod's routes: those of IPAM, through the gateway of their family where they name none, and
/// default routes when the host is the default gateway.
fn routes(conf: &Conf, lease: &Lease, gateways: &[IpNet]) -> Vec<Route> {
    let of_family = |v4: bool| {
        lease.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == v4)
    };
    let mut routes: Vec<Route> = lease
        .routes
        .iter()
        .map(|route| Route {
            gw: route.gw.or_else(|| of_family(route.dst.addr().is_ipv4())),
            ..route.clone()
        })
        .collect();
    if conf.is_default_gateway {
        for gateway in gateways {
            let route = Route::default_through(gateway.addr());
            if !routes.iter().any(|other| other.dst == route.dst) {
                routes.push(route);
            }
        }
    }
    routes
}

/// The result of ADD. The specification wants the bridge, the host's end and the pod's end among
/// the interfaces.
fn success(
    conf: &Conf,
    args: &Args,
    lease: Lease,
    routes: Vec<Route>,
    links: &[Link; 3],
) -> Success {
    let port = names::port(conf, &args.attachment());
    let names = [conf.bridge.clone(), port, args.ifname.clone()];
    let sandboxes = [String::new(), String::new(), args.netns.clone().unwrap_or_default()];
    let interfaces = names.into_iter().zip(sandboxes).zip(links);
    let gateway = |ip: &Ip| {
        ip.gateway.filter(|_| conf.serves_gateway() || !matches!(conf.ipam, conf::Ipam::Local(_)))
    };
    let dns = conf.dns.clone().filter(has_entries).or(Some(lease.dns).filter(has_entries));
    Success {
        cni_version: conf.cni_version.clone(),
        interfaces: interfaces
            .map(|((name, sandbox), link)| Interface {
                name,
                mac: link.mac.clone(),
                mtu: conf.mtu,
                sandbox,
            })
            .collect(),
        ips: lease
            .ips
            .iter()
            .map(|ip| Ip { interface: Some(2), address: ip.address, gateway: gateway(ip) })
            .collect(),
        routes,
        dns: dns.unwrap_or_else(|| json!({})),
    }
}

fn has_entries(value: &Value) -> bool {
    value.as_object().is_some_and(|entries| !entries.is_empty())
}

/// Undoes ADD, however far it came. Needs neither `prevResult` nor the namespace, and succeeds when
/// nothing is left.
pub(crate) async fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    // The order is that of ADD reversed. Ports go first and the address last: once the address is
    // free another pod may get it, and must not receive what was meant for this one.
    begin(At::DelPorts)?;
    let had_ports = portmap::del(conf, args)?;
    let was_checked = macspoof::del(&names::owner(conf, args))?;
    if had_ports || was_checked {
        netfilter::close_later();
    }
    let host = netns::here()?;
    let port = names::port(conf, &args.attachment());
    begin(At::DelLink)?;
    link::delete(&host, &names::ifb(&port)).await?;
    // The kernel deletes a veth pair with the namespace of one end, in the background. Deleting it
    // here would make the caller wait for that.
    if !(args.netns_ends && args.netns.is_some()) {
        link::delete(&host, &port).await?;
    }
    begin(At::DelAddress)?;
    ipam::del(conf, args)
}

/// Compares what ADD made with what is there now.
///
/// # Errors
/// The first difference (code 102).
pub(crate) async fn check(conf: &Conf, args: &Args) -> Result<(), Error> {
    // A runtime that keeps no results calls CHECK without prevResult: then what is reserved for the
    // pod is what it must have.
    let (ips, own_routes) = match &conf.prev_result {
        Some(result) => (result.ips.clone(), result.routes.clone()),
        None => (ipam::reserved(conf, args)?, Vec::new()),
    };
    let netns = open_netns(args)?;
    ipam::check(conf, args, &ips)?;
    let gateways = gateways(conf, &ips);
    let port = names::port(conf, &args.attachment());
    check_host(conf, &port, &gateways).await?;
    let inside = netns::inside(&netns)?;
    let interface = check_inside(conf, args, &inside, &ips).await?;
    let lease = Lease { ips: ips.clone(), routes: own_routes, dns: Value::Null };
    check_routes(&inside, &routes(conf, &lease, &gateways)).await?;
    for ip in &ips {
        if conf.ip_masq && !rules::is_masqueraded(ip.address)? {
            return Err(drift(format!("{} is not masqueraded", ip.address.trunc())));
        }
    }
    if conf.macspoofchk {
        macspoof::check(&names::owner(conf, args), &port, link::parse_mac(&interface.mac)?)?;
    }
    portmap::check(conf, args, &ips)
}

fn drift(what: String) -> Error {
    Error::new(code::DRIFT, what)
}

/// The host's side: the bridge, the gateways' addresses, and the pod's port.
async fn check_host(conf: &Conf, port: &str, gateways: &[IpNet]) -> Result<(), Error> {
    let host = netns::here()?;
    let bridge = link::find(&host, &conf.bridge).await?.filter(|link| link.is_bridge && link.is_up);
    let bridge =
        bridge.ok_or_else(|| drift(format!("bridge {} is missing or down", conf.bridge)))?;
    let name = conf.gateway_interface();
    let gate = if conf.vlan == 0 { Some(bridge.clone()) } else { link::find(&host, &name).await? };
    let gate = gate.ok_or_else(|| drift(format!("{name} is missing")))?;
    let own = address::list(&host, gate.index).await?;
    if let Some(gateway) = gateways.iter().find(|gateway| !own.contains(&gateway.addr())) {
        return Err(drift(format!("{name} does not have the address {gateway}")));
    }
    let link = link::find(&host, port).await?.filter(|link| link.is_up);
    let link = link.ok_or_else(|| drift(format!("{port} is missing or down")))?;
    if link.controller != Some(bridge.index) {
        return Err(drift(format!("{port} is not a port of {}", conf.bridge)));
    }
    Ok(())
}

/// The pod's side: its interface, and the addresses of that.
async fn check_inside(
    conf: &Conf,
    args: &Args,
    inside: &Handle,
    ips: &[Ip],
) -> Result<Link, Error> {
    let interface = link::find(inside, &args.ifname).await?;
    let interface = interface.filter(|link| link.is_up || conf.disable_container_interface);
    let interface =
        interface.ok_or_else(|| drift(format!("{} is missing or down", args.ifname)))?;
    let own = address::list(inside, interface.index).await?;
    match ips.iter().find(|ip| !own.contains(&ip.address.addr())) {
        Some(ip) => Err(drift(format!("{} does not have the address {}", args.ifname, ip.address))),
        None => Ok(interface),
    }
}

/// Compares destinations and gateways. Routes that ADD put into a table of their own are not
/// compared.
async fn check_routes(inside: &Handle, wanted: &[Route]) -> Result<(), Error> {
    let mut there = Vec::new();
    for v4 in [true, false] {
        there.extend(route::list(inside, v4).await?);
    }
    let is_there = |route: &&Route| there.contains(&(route.dst.trunc(), route.gw));
    match wanted.iter().filter(|route| route.table.is_none()).find(|route| !is_there(route)) {
        Some(route) => {
            let through = route.gw.map(|gateway| format!(" through {gateway}")).unwrap_or_default();
            Err(drift(format!("no route to {}{through}", route.dst)))
        }
        None => Ok(()),
    }
}

/// Removes what is left of attachments of this network that are not among the valid ones.
pub(crate) async fn collect_garbage(conf: &Conf, args: &Args) -> Result<(), Error> {
    portmap::collect_garbage(conf)?;
    macspoof::collect_garbage(conf)?;
    let host = netns::here()?;
    if let Some(bridge) = link::find(&host, &conf.bridge).await? {
        let valid: Vec<String> =
            conf.valid_attachments.iter().map(|one| names::port(conf, one)).collect();
        // The hash in a port's name cannot be undone, so ports that are not valid are found by the
        // part of the name that all of a network share. Ports of other programs are shorter or
        // begin otherwise.
        let network = names::port_prefix(conf);
        let is_stale = |name: &String| {
            name.len() == names::PORT_LENGTH && name.starts_with(&network) && !valid.contains(name)
        };
        for name in bridge::ports(&host, bridge.index).await?.into_iter().filter(is_stale) {
            link::delete(&host, &names::ifb(&name)).await?;
            link::delete(&host, &name).await?;
        }
    }
    ipam::collect_garbage(conf, args)
}
