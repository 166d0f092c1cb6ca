//! What `create` refuses, in dockerd's words and in its order, and what it only warns of.

mod modes;
mod networking;
mod resources;

use std::net::IpAddr;

use berth_node::container::{capability_bit, parse_signal};
use http::StatusCode;

pub(crate) use self::resources::resources;

use super::{logging, mounts};
use crate::{
    api::{
        create::{ContainerConfig, CreateBody},
        host_config::HostConfig,
    },
    engine::Engine,
    health,
    http::error::{Failure, Result},
    sysinfo::SysInfo,
};

/// Checks a request, and drops from it what this machine does not have. Returns the warnings.
///
/// # Errors
/// 400, and 500 for some of the texts that dockerd parses late.
pub(crate) fn check(
    engine: &Engine,
    body: &mut CreateBody,
    machine: &SysInfo,
) -> Result<Vec<String>> {
    modes::network(&body.config, &body.host_config)?;
    modes::isolation(&body.host_config)?;
    let mut warnings = networking::check(engine, body)?;
    config(&body.config)?;
    host_config(&body.host_config)?;
    warnings.extend(resources(&mut body.host_config, machine, false)?);
    modes::namespaces(&body.host_config)?;
    numbers(&body.host_config)?;
    if body.host_config.network_mode == "host"
        && body.host_config.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty())
    {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    Ok(warnings)
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure::bad_request(text))
}

fn config(config: &ContainerConfig) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return refuse(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        ));
    }
    if let Some(signal) = config.stop_signal.as_deref().filter(|signal| !signal.is_empty())
        && parse_signal(&signal.to_ascii_uppercase()).is_none()
    {
        return refuse(format!("invalid signal: {signal}"));
    }
    for variable in config.env.iter().flatten() {
        if variable.is_empty() || variable.starts_with('=') {
            return refuse(format!("invalid environment variable: {variable}"));
        }
    }
    if let Some(health) = &config.healthcheck {
        health::check(health)?;
    }
    Ok(())
}

fn host_config(host: &HostConfig) -> Result<()> {
    let policy = &host.restart_policy;
    if host.auto_remove && !["", "no"].contains(&policy.name.as_str()) {
        return refuse("can't create 'AutoRemove' container with restart policy");
    }
    mounts::mount_points(host)?;
    for target in host.tmpfs.iter().flatten().map(|(target, _)| target) {
        mounts::destination(target).map_err(Failure::bad_request)?;
    }
    for entry in host.extra_hosts.iter().flatten() {
        extra_host(entry)?;
    }
    ports(host)?;
    if policy.name.is_empty() && policy.maximum_retry_count != 0 {
        return refuse(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        );
    }
    policy.check()?;
    for (names, field) in [(&host.cap_add, "CapAdd"), (&host.cap_drop, "CapDrop")] {
        capabilities(names.as_deref().unwrap_or_default(), field)?;
    }
    if host.annotations.iter().flatten().any(|(key, _)| key.is_empty()) {
        return refuse(
            "invalid Annotations: the empty string is not permitted as an annotation key",
        );
    }
    for option in host.security_opt.iter().flatten() {
        security_option(option)?;
    }
    if host.storage_opt.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
        ));
    }
    logging::check(&host.log_config).map_err(Failure::bad_request)
}

fn capabilities(names: &[String], field: &str) -> Result<()> {
    let unknown = names
        .iter()
        .find(|name| !name.eq_ignore_ascii_case("ALL") && capability_bit(name).is_err());
    match unknown {
        None => Ok(()),
        Some(name) => {
            let upper = name.to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            refuse(format!("invalid {field}: unknown capability: \"{full}\""))
        }
    }
}

/// `NAME:ADDRESS`, where the address may be that of the host by its special name.
fn extra_host(entry: &str) -> Result<()> {
    let (name, address) = entry.split_once([':', '=']).unwrap_or((entry, ""));
    if name.is_empty() || address.is_empty() {
        return refuse(format!("bad format for add-host: \"{entry}\""));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match address == "host-gateway" || bare.unwrap_or(address).parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => refuse(format!("invalid IP address in add-host: \"{address}\"")),
    }
}

fn ports(host: &HostConfig) -> Result<()> {
    let is_range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if first <= last)
    };
    let refused = |text: &str| refuse(format!("invalid port specification: \"{text}\""));
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let number = port.split('/').next().unwrap_or_default();
        if number.parse::<u16>().is_err() {
            return refused(number);
        }
        for binding in bindings.iter().flatten() {
            if !binding.host_port.is_empty() && !is_range(&binding.host_port) {
                return refused(&binding.host_port);
            }
        }
    }
    Ok(())
}

/// What the options mean is in `run::security`.
fn security_option(option: &str) -> Result<()> {
    // dockerd numbers its two reasons, not the options.
    let refused = |number: usize| {
        let text = format!("invalid --security-opt {number}: \"{option}\"");
        Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text))
    };
    if ["no-new-privileges", "disable"].contains(&option) {
        return Ok(());
    }
    let Some((name, value)) = option.split_once(['=', ':']) else { return refused(1) };
    match name {
        "label" | "apparmor" | "seccomp" => Ok(()),
        "no-new-privileges" | "writable-cgroups"
            if ["true", "false", "1", "0"].contains(&value) =>
        {
            Ok(())
        }
        _ => refused(2),
    }
}

fn numbers(host: &HostConfig) -> Result<()> {
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0");
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return refuse(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    Ok(())
}
