//! Devices, by path and by name.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use berth_node::{cgroup::DeviceRule, container::Device, host::Host};
use http::StatusCode;

use crate::{
    api::host_config::{DeviceRequest, HostConfig},
    http::error::{Failure, Result},
};

/// Stands for all numbers.
const ANY: i64 = -1;
/// How deep a directory of devices is searched.
const MAX_DEPTH: usize = 8;

/// The devices that are named by their paths. A directory stands for all that are in it.
///
/// # Errors
/// 500 for one that is not there.
pub(super) fn of(host: &HostConfig) -> Result<Vec<Device>> {
    let or = |text: &str, default: &str| match text {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    let mut devices = Vec::new();
    for mapping in host.devices.iter().flatten() {
        let path = Path::new(&mapping.path_on_host);
        let target = PathBuf::from(or(&mapping.path_in_container, &mapping.path_on_host));
        let permissions = or(&mapping.cgroup_permissions, "rwm");
        // What lies behind a link is meant, such as /dev/disk/by-id/….
        let found = fs::canonicalize(path).map_err(|error| missing(path, &error))?;
        let before = devices.len();
        collect(&found, &target, &permissions, 0, &mut devices);
        if devices.len() == before {
            return Err(missing(path, &"not a device node"));
        }
    }
    Ok(devices)
}

fn missing(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    let why = why.to_string();
    let why = if why.contains("os error 2") { "no such file or directory" } else { &why };
    let path = path.display();
    Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("error gathering device information while adding custom device \"{path}\": {why}"),
    )
}

fn collect(path: &Path, target: &Path, permissions: &str, depth: usize, all: &mut Vec<Device>) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let kind = metadata.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        all.push(Device {
            host_path: path.to_owned(),
            container_path: target.to_owned(),
            permissions: permissions.to_owned(),
        });
    } else if kind.is_dir() && depth < MAX_DEPTH {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let target = target.join(entry.file_name());
            collect(&entry.path(), &target, permissions, depth + 1, all);
        }
    }
}

/// `TYPE MAJOR:MINOR PERMISSIONS`, such as `c 188:* rwm`: devices that may be used, which are not
/// there yet.
///
/// # Errors
/// 500 for what does not read like that.
pub(super) fn rules(host: &HostConfig) -> Result<Vec<DeviceRule>> {
    let mut rules = Vec::new();
    for text in host.device_cgroup_rules.iter().flatten() {
        let parsed = parse_rule(text).ok_or_else(|| {
            Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("invalid device cgroup rule format: '{text}'"),
            )
        })?;
        rules.extend(parsed);
    }
    Ok(rules)
}

fn parse_rule(text: &str) -> Option<Vec<DeviceRule>> {
    let [kind, numbers, permissions] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let number = |text: &str| match text {
        "*" => Some(ANY),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor) = (number(major)?, number(minor)?);
    if permissions.is_empty()
        || permissions.len() > 3
        || permissions.chars().any(|letter| !"rwm".contains(letter))
    {
        return None;
    }
    let rule = |block| DeviceRule { block, major, minor, permissions: permissions.to_owned() };
    match kind {
        "b" => Some(vec![rule(true)]),
        "c" => Some(vec![rule(false)]),
        "a" => Some(vec![rule(true), rule(false)]),
        _ => None,
    }
}

/// The kind of the devices that `--gpus` means.
const GPUS: &str = "nvidia.com/gpu";

/// The qualified names of the devices that are asked for by driver (Container Device Interface).
///
/// # Errors
/// 500 for a driver that is not known.
pub(super) fn cdi(host: &HostConfig) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for request in host.device_requests.iter().flatten() {
        let ids = request.device_ids.as_deref().unwrap_or_default();
        match request.driver.as_str() {
            "cdi" => names.extend(ids.iter().cloned()),
            "" | "nvidia" if wants_gpu(request) => names.extend(gpus(request.count, ids)),
            _ => return Err(no_driver(request)),
        }
    }
    Ok(names)
}

/// Whether there is a driver for what is asked for, as far as only the machine can tell.
///
/// # Errors
/// 500, as of a dockerd on a machine without GPUs.
pub(crate) fn check_drivers(machine: &Host, host: &HostConfig) -> Result<()> {
    let gpus = |request: &&DeviceRequest| request.driver != "cdi" && wants_gpu(request);
    match host.device_requests.iter().flatten().find(gpus) {
        Some(request) if !machine.has_devices(GPUS) => Err(no_driver(request)),
        _ => Ok(()),
    }
}

fn wants_gpu(request: &DeviceRequest) -> bool {
    let sets = request.capabilities.iter().flatten();
    sets.flatten().any(|capability| capability == "gpu")
        || (request.driver == "nvidia" && request.capabilities.is_none())
}

/// `--gpus all`, a number of them, or those that are named.
fn gpus(count: i64, ids: &[String]) -> Vec<String> {
    let name = |device: &str| format!("{GPUS}={device}");
    match count {
        _ if !ids.is_empty() => ids.iter().map(|id| name(id)).collect(),
        ..0 => vec![name("all")],
        count => (0..count).map(|index| name(&index.to_string())).collect(),
    }
}

pub(super) fn no_driver(request: &DeviceRequest) -> Failure {
    let sets = request.capabilities.iter().flatten();
    let sets: Vec<String> = sets.map(|set| format!("[{}]", set.join(" "))).collect();
    Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!(
            "could not select device driver \"{}\" with capabilities: [{}]",
            request.driver,
            sets.join(" ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_or_refused() {
        let rules = |text: &str| {
            let host = HostConfig {
                device_cgroup_rules: Some(vec![text.into()]),
                ..HostConfig::default()
            };
            rules(&host)
        };
        let rule = |block| DeviceRule { block, major: 188, minor: ANY, permissions: "rw".into() };
        assert_eq!(rules("c 188:* rw").unwrap(), [rule(false)]);
        assert_eq!(rules("a 188:* rw").unwrap(), [rule(true), rule(false)]);
        for wrong in
            ["", "x 1:1 r", "c 1 r", "c 1:1", "c 1:1 x", "c -1:1 r", "c 1:1 rwmr", "c 1:1 "]
        {
            let text = format!("invalid device cgroup rule format: '{wrong}'");
            assert_eq!(rules(wrong).unwrap_err().message, text);
        }
    }

    #[test]
    fn requests_become_names() {
        let request = |driver: &str, count, ids: &[&str], gpu: bool| DeviceRequest {
            driver: driver.into(),
            count,
            device_ids: Some(ids.iter().map(|id| (*id).to_owned()).collect()),
            capabilities: gpu.then(|| vec![vec!["gpu".to_owned()]]),
            options: None,
        };
        let names = |request| {
            cdi(&HostConfig { device_requests: Some(vec![request]), ..HostConfig::default() })
        };
        for (asked, expected) in [
            (request("", -1, &[], true), &["nvidia.com/gpu=all"][..]),
            (request("nvidia", 2, &[], true), &["nvidia.com/gpu=0", "nvidia.com/gpu=1"]),
            (request("", 0, &["1"], true), &["nvidia.com/gpu=1"]),
            (request("cdi", 0, &["v/c=n"], false), &["v/c=n"]),
        ] {
            assert_eq!(names(asked).unwrap(), expected);
        }
        let text = "could not select device driver \"x\" with capabilities: [[gpu]]";
        assert_eq!(names(request("x", -1, &[], true)).unwrap_err().message, text);
    }
}
