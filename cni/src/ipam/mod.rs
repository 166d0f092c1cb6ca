//! Where a pod's addresses come from: the built-in reservations, or another program that speaks
//! CNI.

mod delegate;
mod reservations;

use std::{fs, net::IpAddr, path::Path};

use berth_cni::{Error, Ip, Route, Success, code};
use ipnet::IpNet;
use serde_json::{Value, json};

use self::{delegate::delegate, reservations::Reservations};
use crate::{
    args::Args,
    conf::{Conf, Ipam, Local, Range},
};

/// What IPAM has allocated to an attachment.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Value,
}

/// Allocates the addresses of an attachment.
///
/// # Errors
/// No address is left (code 101), a requested one is in use (103), or the IPAM plugin fails, in its
/// own words.
pub(crate) fn add(conf: &Conf, args: &Args) -> Result<Lease, Error> {
    match &conf.ipam {
        Ipam::None => Ok(Lease::default()),
        Ipam::Local(local) => {
            let requested = conf.requested_ips(args.requested_ips.as_deref())?;
            let reservations = open(local, conf)?;
            let reserved = reservations.reserve(local, &requested, &args.attachment())?;
            let dns =
                local.resolv_conf.as_deref().map(resolv_conf).transpose()?.unwrap_or_default();
            Ok(Lease {
                ips: reserved.into_iter().map(|(address, range)| ip(address, &range)).collect(),
                routes: local.routes.clone(),
                dns,
            })
        }
        Ipam::Delegate(name) => {
            let output = delegate(name, args)?;
            let success: Success = serde_json::from_slice(&output).map_err(|error| {
                Error::new(code::DECODE, format!("result of IPAM plugin {name}: {error}"))
            })?;
            // Without an address the pod would be made, and be of no use to anybody.
            if success.ips.is_empty() {
                return Err(Error::new(
                    code::INVALID_CONFIG,
                    format!("IPAM plugin {name} returned no address"),
                ));
            }
            Ok(Lease { ips: success.ips, routes: success.routes, dns: success.dns })
        }
    }
}

/// Frees the addresses of an attachment; success when it has none.
pub(crate) fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => open(local, conf)?.release(&args.attachment()),
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

/// Compares the reservations of an attachment with the addresses of its result.
pub(crate) fn check(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let reserved = open(local, conf)?.of(&args.attachment())?;
            let missing =
                ips.iter().map(|ip| ip.address.addr()).find(|address| !reserved.contains(address));
            match missing {
                Some(address) => Err(Error::new(
                    code::DRIFT,
                    format!("{address} is not reserved for {}", args.container_id),
                )),
                // The result may name no address at all, where the reservation is what was lost.
                None if reserved.is_empty() => Err(Error::new(
                    code::DRIFT,
                    format!("no address is reserved for {}", args.container_id),
                )),
                None => Ok(()),
            }
        }
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

/// The addresses that are reserved for an attachment, for a CHECK without `prevResult`. What
/// another plugin has allocated is unknown.
pub(crate) fn reserved(conf: &Conf, args: &Args) -> Result<Vec<Ip>, Error> {
    let Ipam::Local(local) = &conf.ipam else { return Ok(Vec::new()) };
    let range = |address: &IpAddr| {
        local.sets.iter().flatten().find(|range| range.contains(address)).copied()
    };
    let addresses = open(local, conf)?.of(&args.attachment())?;
    // An address that is in no range is left from an earlier configuration, and its prefix length
    // is not known.
    Ok(addresses.into_iter().filter_map(|address| Some(ip(address, &range(&address)?))).collect())
}

fn ip(address: IpAddr, range: &Range) -> Ip {
    Ip {
        interface: None,
        address: IpNet::new_assert(address, range.subnet.prefix_len()),
        gateway: Some(range.gateway),
    }
}

/// Whether every range set has an address left.
///
/// # Errors
/// One has none (code 50), or the IPAM plugin says that it cannot serve.
pub(crate) fn status(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let taken = open(local, conf)?.taken()?;
            for set in &local.sets {
                let room =
                    set.iter().fold(0_u128, |room, range| room.saturating_add(range.capacity()));
                // The directory may also have addresses of an earlier configuration, which take no
                // room in these ranges.
                let used = taken
                    .iter()
                    .filter(|address| set.iter().any(|range| range.contains(address)))
                    .count();
                if used as u128 >= room {
                    let msg = format!("all {room} addresses of {} are in use", set[0]);
                    return Err(Error::new(code::NOT_AVAILABLE, msg));
                }
            }
            Ok(())
        }
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

/// Frees what is reserved for attachments that are not valid any more.
pub(crate) fn collect_garbage(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let reservations = open(local, conf)?;
            // Under the lock from reading to releasing, so that no ADD comes in between.
            let stale = reservations
                .holders()?
                .into_iter()
                .filter(|holder| !conf.valid_attachments.contains(holder));
            stale.into_iter().try_for_each(|holder| reservations.release(&holder))
        }
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

fn open(local: &Local, conf: &Conf) -> Result<Reservations, Error> {
    Reservations::open(&local.data_dir, &conf.name)
}

/// The key `dns` of a result, from a file in the format of resolv.conf(5).
fn resolv_conf(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::new(code::IO, format!("{}: {error}", path.display())))?;
    let of = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        let words = lines
            .filter(|rest| rest.starts_with(char::is_whitespace))
            .flat_map(str::split_whitespace);
        words.map(str::to_owned).collect()
    };
    let domain = of("domain").pop().unwrap_or_default();
    Ok(json!({
        "nameservers": of("nameserver"),
        "domain": domain,
        "search": of("search"),
        "options": of("options"),
    }))
}
