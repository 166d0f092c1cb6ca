//! Which of a container's networks leads it outside, by the default route, and lets the ports of the
//! host in. That may become another one while the container runs, as it comes to networks and leaves
//! them. These are no commands of CNI.

use berth_cni::{Error, Ip, Route};
use ipnet::IpNet;

use crate::{
    args::Args,
    bridge,
    conf::Conf,
    ipam, netfilter,
    netlink::{netns, route},
    portmap,
    steps::{At, begin},
};

/// Gives an attached container its default routes and its ports; success when it has them. The
/// network that led before has to have surrendered: the kernel keeps one default route.
///
/// # Errors
/// It is not attached, or a port is another's (code 103).
pub(crate) async fn lead(conf: &Conf, args: &Args) -> Result<(), Error> {
    let ips = addresses(conf, args)?;
    let netns = bridge::open_netns(args)?;
    let inside = netns::inside(&netns)?;
    let interface = bridge::find(&inside, &args.ifname).await?;
    begin(At::LeadRoute)?;
    for gateway in bridge::gateways(conf, &ips) {
        route::add(&inside, interface.index, &Route::default_through(gateway.addr())).await?;
    }
    begin(At::LeadPorts)?;
    // Its own may be there, of a call that was killed.
    portmap::del(conf, args)?;
    portmap::add(conf, args, &ips)
}

/// Undoes `lead`.
pub(crate) async fn surrender(conf: &Conf, args: &Args) -> Result<(), Error> {
    begin(At::YieldPorts)?;
    if portmap::del(conf, args)? {
        netfilter::close_later();
    }
    let netns = bridge::open_netns(args)?;
    let inside = netns::inside(&netns)?;
    let interface = bridge::find(&inside, &args.ifname).await?;
    begin(At::YieldRoute)?;
    let gateways: Vec<IpNet> = bridge::gateways(conf, &addresses(conf, args)?);
    for gateway in gateways {
        route::delete(&inside, interface.index, &Route::default_through(gateway.addr())).await?;
    }
    Ok(())
}

/// What ADD gave.
fn addresses(conf: &Conf, args: &Args) -> Result<Vec<Ip>, Error> {
    match &conf.prev_result {
        Some(result) => Ok(result.ips.clone()),
        None => ipam::reserved(conf, args),
    }
}
