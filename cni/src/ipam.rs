//! Where a pod's addresses come from: the built-in reservations, or another program that speaks CNI.

use std::{
    env, fs,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use berth_cni::{Error, Ip, Route, Success, code};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    Args,
    conf::{Conf, Ipam, Local},
    reservations::Reservations,
};

/// What an attachment was given.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Value,
}

/// # Errors
/// No address is left or the wanted one is in use; those of the delegate, in its words.
pub(crate) fn add(conf: &Conf, args: &Args) -> Result<Lease, Error> {
    match &conf.ipam {
        Ipam::None => Ok(Lease::default()),
        Ipam::Local(local) => {
            let wanted = conf.wanted(args.wanted.as_deref())?;
            let reservations = Reservations::open(&local.data_dir, &conf.name)?;
            let given = reservations.reserve(&local.sets, &wanted, &args.attachment())?;
            let ip = |(address, range): (IpAddr, crate::conf::Range)| Ip {
                interface: None,
                address: IpNet::new_assert(address, range.subnet.prefix_len()),
                gateway: Some(range.gateway),
            };
            let dns = local.resolv_conf.as_deref().map(resolv_conf).transpose()?.unwrap_or_default();
            Ok(Lease { ips: given.into_iter().map(ip).collect(), routes: local.routes.clone(), dns })
        }
        Ipam::Delegate(name) => {
            let answer = delegate(name, args)?;
            let success: Success = serde_json::from_slice(&answer)
                .map_err(|error| Error::new(code::DECODE, format!("result of IPAM plugin {name}: {error}")))?;
            if success.ips.is_empty() {
                return Err(Error::new(code::INVALID_CONFIG, format!("IPAM plugin {name} gave no address")));
            }
            Ok(Lease { ips: success.ips, routes: success.routes, dns: success.dns })
        }
    }
}

/// Success when nothing was given.
pub(crate) fn del(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => open(local, conf)?.release(&args.attachment()),
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

/// Compares what was given with what the pod has.
pub(crate) fn check(conf: &Conf, args: &Args, ips: &[Ip]) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let reserved = open(local, conf)?.of(&args.attachment())?;
            let missing = ips.iter().map(|ip| ip.address.addr()).find(|address| !reserved.contains(address));
            match missing {
                Some(address) => {
                    Err(Error::new(code::DRIFT, format!("{address} is not reserved for {}", args.container_id)))
                }
                None if reserved.is_empty() => {
                    Err(Error::new(code::DRIFT, format!("no address is reserved for {}", args.container_id)))
                }
                None => Ok(()),
            }
        }
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

/// What an attachment has, for a CHECK without `prevResult`.
pub(crate) fn reserved(conf: &Conf, args: &Args) -> Result<Vec<Ip>, Error> {
    let Ipam::Local(local) = &conf.ipam else { return Ok(Vec::new()) };
    let range = |address: &IpAddr| local.sets.iter().flatten().find(|range| range.contains(address)).copied();
    let ip = |address: IpAddr| {
        let range = range(&address)?;
        let address = IpNet::new_assert(address, range.subnet.prefix_len());
        Some(Ip { interface: None, address, gateway: Some(range.gateway) })
    };
    Ok(open(local, conf)?.of(&args.attachment())?.into_iter().filter_map(ip).collect())
}

/// Whether there is an address left in every range set.
pub(crate) fn status(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let taken = open(local, conf)?.taken()?;
            for set in &local.sets {
                let room = set.iter().fold(0_u128, |room, range| room.saturating_add(range.capacity()));
                let used = taken.iter().filter(|address| set.iter().any(|range| range.contains(address))).count();
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

/// Frees what belongs to nobody valid.
pub(crate) fn collect_garbage(conf: &Conf, args: &Args) -> Result<(), Error> {
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::Local(local) => {
            let reservations = open(local, conf)?;
            let stale = reservations.holders()?.into_iter().filter(|holder| !conf.valid_attachments.contains(holder));
            stale.into_iter().try_for_each(|holder| reservations.release(&holder))
        }
        Ipam::Delegate(name) => delegate(name, args).map(drop),
    }
}

fn open(local: &Local, conf: &Conf) -> Result<Reservations, Error> {
    Reservations::open(&local.data_dir, &conf.name)
}

/// The DNS part of a result, of a file that resolv.conf(5) describes.
fn resolv_conf(path: &Path) -> Result<Value, Error> {
    let text =
        fs::read_to_string(path).map_err(|error| Error::new(code::IO, format!("{}: {error}", path.display())))?;
    let of = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        let words = lines.filter(|rest| rest.starts_with(char::is_whitespace)).flat_map(str::split_whitespace);
        words.map(str::to_owned).collect()
    };
    let domain = of("domain").pop().unwrap_or_default();
    Ok(json!({ "nameservers": of("nameserver"), "domain": domain, "search": of("search"), "options": of("options") }))
}

/// Runs another plugin with the environment and the configuration of this one (SPEC.md, "Delegated plugins").
fn delegate(name: &str, args: &Args) -> Result<Vec<u8>, Error> {
    let failed = |what: String| Error::new(code::IO, format!("IPAM plugin {name}: {what}"));
    let path = find(name).ok_or_else(|| failed("not in CNI_PATH".to_owned()))?;
    let mut child = Command::new(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that does not read has its own answer.
        let _ = stdin.write_all(args.stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    match serde_json::from_slice::<Error>(&output.stdout) {
        // Plugins before 1.1.0 know no STATUS and no GC, and have nothing against them.
        Ok(error) if error.code == code::INVALID_ENVIRONMENT && ["STATUS", "GC"].contains(&args.command.as_str()) => {
            Ok(Vec::new())
        }
        Ok(error) => Err(Error { msg: format!("IPAM plugin {name}: {}", error.msg), ..error }),
        Err(_) => Err(failed(format!("{}, and no error object", output.status))),
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let places = env::var_os("CNI_PATH")?;
    env::split_paths(&places).map(|directory| directory.join(name)).find(|path| path.is_file())
}
