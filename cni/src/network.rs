//! A network without its containers: what berthd makes when a network is created, so that its user
//! hears at once what is wrong, and takes away with it. These are no commands of CNI.

use std::{fs, io};

use berth_cni::{Error, code};
use ipnet::IpNet;

use crate::{
    bridge,
    conf::{Conf, Ipam},
    isolation,
    netlink::{bridge as kernel, link, netns},
    nft::rules,
    steps::{At, begin},
};

/// Makes the bridge with the addresses of its gateways, as the first ADD would; success when it is
/// there.
///
/// # Errors
/// As ADD's.
pub(crate) async fn up(conf: &Conf) -> Result<(), Error> {
    let host = netns::here()?;
    let gateways = gateways(conf);
    begin(At::UpBridge)?;
    let link = kernel::ensure(&host, &bridge::settings(conf, &gateways)).await?;
    if conf.serves_gateway() {
        begin(At::UpGateway)?;
        bridge::serve_gateways(conf, &host, &link, &gateways).await?;
    }
    isolation::ensure(conf)
}

/// Takes away what ADDs have made for all of the network's containers together, and what they leave
/// for the next: the bridge, its elements of sets, and the reservations. Success when nothing is
/// left. No container may be attached.
///
/// # Errors
/// An interface of that name is no bridge (code 7), or the kernel refuses.
pub(crate) async fn down(conf: &Conf) -> Result<(), Error> {
    let host = netns::here()?;
    begin(At::DownBridge)?;
    match link::find(&host, &conf.bridge).await? {
        Some(link) if !link.is_bridge => {
            let msg = format!("{} is not a bridge", conf.bridge);
            return Err(Error::new(code::INVALID_CONFIG, msg));
        }
        Some(_) => link::delete(&host, &conf.bridge).await?,
        None => {}
    }
    begin(At::DownRules)?;
    isolation::forget(conf)?;
    gateways(conf).iter().try_for_each(|gateway| rules::forget_network(gateway.trunc()))?;
    begin(At::DownAddresses)?;
    let Ipam::Local(local) = &conf.ipam else { return Ok(()) };
    let reservations = local.data_dir.join(&conf.name);
    match fs::remove_dir_all(&reservations) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let msg = format!("remove {}: {error}", reservations.display());
            Err(Error::new(code::IO, msg))
        }
        _ => Ok(()),
    }
}

/// The gateway of each range set, with the prefix length of its subnet.
fn gateways(conf: &Conf) -> Vec<IpNet> {
    let Ipam::Local(local) = &conf.ipam else { return Vec::new() };
    let first = local.sets.iter().filter_map(|set| set.first());
    first.map(|range| IpNet::new_assert(range.gateway, range.subnet.prefix_len())).collect()
}
