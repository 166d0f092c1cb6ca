//! ADD as steps that ensure, DEL as its idempotent undo, CHECK as a comparison, GC as DEL of everybody who left.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
};

use berth_cni::{Attachment, Error, Interface, Ip, Route, Success, code};
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::Handle;

use crate::{
    Args,
    conf::Conf,
    ipam::Reservations,
    link::{self, Link, Pair},
    masquerade, netns,
};

/// Attaches the namespace of `args`. What a failed step leaves, DEL removes, and the runtime calls it.
pub(crate) async fn add(conf: &Conf, args: &Args) -> Result<Success, Error> {
    let path = args.netns.as_deref().unwrap_or_default();
    let netns = File::open(path)
        .map_err(|error| Error::new(code::UNKNOWN_CONTAINER, format!("network namespace {path}: {error}")))?;
    let address = Reservations::open(conf)?.reserve(conf, &args.attachment())?;
    let host = netns::here()?;
    let bridge = link::ensure_bridge(&host, &conf.bridge, mac(conf.ipam.gateway()), conf.mtu).await?;
    if conf.serves_gateway() {
        serve_gateway(conf, &host, &bridge).await?;
    }
    let port = attach(conf, args, &netns, &host, &bridge).await?;
    let inside = configure(conf, args, &netns, address).await?;
    if conf.ip_masq {
        masquerade::ensure(conf.ipam.subnet)?;
    }
    Ok(success(conf, args, address, &[bridge, port, inside]))
}

/// A locally administered address that tells which gateway it is.
fn mac(gateway: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = gateway.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The bridge answers for the gateway's address, and the host forwards.
async fn serve_gateway(conf: &Conf, host: &Handle, bridge: &Link) -> Result<(), Error> {
    let gateway = Ipv4Net::new(conf.ipam.gateway(), conf.ipam.subnet.prefix_len())
        .map_err(|error| Error::new(code::INVALID_CONFIG, error.to_string()))?;
    link::add_address(host, bridge.index, gateway).await?;
    let path = "/proc/sys/net/ipv4/ip_forward";
    // Written only when needed: the kernel walks every interface on a write, even of the same value.
    let forwards = fs::read(path).is_ok_and(|value| value.starts_with(b"1"));
    if forwards {
        Ok(())
    } else {
        fs::write(path, "1").map_err(|error| Error::new(code::IO, format!("write {path}: {error}")))
    }
}

async fn attach(conf: &Conf, args: &Args, netns: &File, host: &Handle, bridge: &Link) -> Result<Link, Error> {
    let name = args.port();
    let pair = Pair { host: &name, inside: &args.ifname, netns: netns.as_fd(), bridge: bridge.index, mtu: conf.mtu };
    link::add_pair(host, &pair).await?;
    let port = link::find(host, &name).await?.ok_or_else(|| Error::new(code::KERNEL, format!("{name} vanished")))?;
    if conf.hairpin_mode {
        link::set_hairpin(host, port.index).await?;
    }
    Ok(port)
}

/// Address and routes inside the namespace.
async fn configure(conf: &Conf, args: &Args, netns: &File, address: Ipv4Addr) -> Result<Link, Error> {
    let inside = netns::inside(netns)?;
    let interface = link::find(&inside, &args.ifname)
        .await?
        .ok_or_else(|| Error::new(code::KERNEL, format!("{} vanished from the namespace", args.ifname)))?;
    let network = Ipv4Net::new(address, conf.ipam.subnet.prefix_len())
        .map_err(|error| Error::new(code::INVALID_CONFIG, error.to_string()))?;
    link::add_address(&inside, interface.index, network).await?;
    link::bring_up(&inside, interface.index).await?;
    for route in routes(conf) {
        let gateway = match route.gw {
            Some(IpAddr::V4(gateway)) => gateway,
            _ => conf.ipam.gateway(),
        };
        link::add_route(&inside, route.dst, gateway).await?;
    }
    Ok(interface)
}

/// Those of the configuration, and the default one when the bridge is the default gateway.
fn routes(conf: &Conf) -> Vec<Route> {
    let mut routes = conf.ipam.routes.clone();
    let default = IpNet::V4(Ipv4Net::default());
    if conf.is_default_gateway && !routes.iter().any(|route| route.dst == default) {
        routes.push(Route { dst: default, gw: Some(conf.ipam.gateway().into()) });
    }
    routes
}

fn success(conf: &Conf, args: &Args, address: Ipv4Addr, links: &[Link; 3]) -> Success {
    let names = [conf.bridge.clone(), args.port(), args.ifname.clone()];
    let sandboxes = [String::new(), String::new(), args.netns.clone().unwrap_or_default()];
    let interfaces = names.into_iter().zip(sandboxes).zip(links);
    Success {
        cni_version: conf.cni_version.clone(),
        interfaces: interfaces
            .map(|((name, sandbox), link)| Interface { name, mac: link.mac.clone(), mtu: conf.mtu, sandbox })
            .collect(),
        ips: vec![Ip {
            interface: Some(2),
            address: IpNet::new_assert(address.into(), conf.ipam.subnet.prefix_len()),
            gateway: conf.serves_gateway().then(|| conf.ipam.gateway().into()),
        }],
        routes: routes(conf),
        dns: serde_json::json!({}),
    }
}

/// Undoes ADD, whatever of it happened. Needs neither `prevResult` nor the namespace.
pub(crate) async fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    // The kernel deletes the link with its namespace, in the background; here the caller would wait for it.
    if !(args.netns_ends && args.netns.is_some()) {
        link::delete(&netns::here()?, &args.port()).await?;
    }
    Reservations::open(conf)?.release(&args.attachment())
}

/// Compares what ADD made with what is there.
pub(crate) async fn check(conf: &Conf, args: &Args) -> Result<(), Error> {
    let drift = |what: String| Error::new(code::DRIFT, what);
    let address = Reservations::open(conf)?
        .of(&args.attachment())?
        .next()
        .ok_or_else(|| drift(format!("no address is reserved for {}", args.container_id)))?;
    let host = netns::here()?;
    let bridge = link::find(&host, &conf.bridge).await?.filter(|link| link.is_bridge && link.is_up);
    let bridge = bridge.ok_or_else(|| drift(format!("bridge {} is missing or down", conf.bridge)))?;
    let port = link::find(&host, &args.port()).await?.filter(|link| link.is_up);
    let port = port.ok_or_else(|| drift(format!("{} is missing or down", args.port())))?;
    if port.controller != Some(bridge.index) {
        return Err(drift(format!("{} is not a port of {}", args.port(), conf.bridge)));
    }
    let path = args.netns.as_deref().unwrap_or_default();
    let netns = File::open(path).map_err(|error| Error::new(code::UNKNOWN_CONTAINER, format!("{path}: {error}")))?;
    let inside = netns::inside(&netns)?;
    let interface = link::find(&inside, &args.ifname).await?.filter(|link| link.is_up);
    let interface = interface.ok_or_else(|| drift(format!("{} is missing or down", args.ifname)))?;
    if !link::addresses(&inside, interface.index).await?.contains(&IpAddr::V4(address)) {
        return Err(drift(format!("{} has not the address {address}", args.ifname)));
    }
    if conf.is_default_gateway && !link::has_default_route(&inside, conf.ipam.gateway()).await? {
        return Err(drift(format!("no default route through {}", conf.ipam.gateway())));
    }
    if conf.ip_masq && !masquerade::has(conf.ipam.subnet)? {
        return Err(drift(format!("{} is not masqueraded", conf.ipam.subnet)));
    }
    Ok(())
}

/// Whether an ADD could succeed now.
pub(crate) fn status(conf: &Conf) -> Result<(), Error> {
    let taken = Reservations::open(conf)?.list()?.len() as u64;
    let (first, last) = (u32::from(conf.ipam.first()), u32::from(conf.ipam.last()));
    let gateway = u64::from((first..=last).contains(&u32::from(conf.ipam.gateway())));
    let room = u64::from(last - first) + 1 - gateway;
    if taken < room {
        return Ok(());
    }
    Err(Error::new(code::NOT_AVAILABLE, format!("all {room} addresses of {} are in use", conf.ipam.subnet)))
}

/// DEL for every reservation whose attachment is not among the valid ones.
pub(crate) async fn collect_garbage(conf: &Conf) -> Result<(), Error> {
    let reservations = Reservations::open(conf)?.list()?;
    for stale in reservations.into_iter().filter(|reservation| !conf.valid_attachments.contains(&reservation.holder)) {
        let Attachment { container_id, ifname } = stale.holder;
        del(conf, &Args { container_id, ifname, netns: None, netns_ends: false }).await?;
    }
    Ok(())
}

impl Args {
    fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// The host's end, named by container and interface so that DEL finds it without a namespace: FNV-1a, 48 bits of it.
    fn port(&self) -> String {
        let hash = [self.container_id.as_bytes(), b"/", self.ifname.as_bytes()]
            .concat()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        format!("br{:012x}", hash & 0xffff_ffff_ffff)
    }
}
