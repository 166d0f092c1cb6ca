//! Devices of the host in a container: the nodes to make, and the rules for its cgroup.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use berth_base::error::{Error, Result};
use berth_shim::spec::{self, DeviceKind};

use crate::{
    cdi,
    cgroup::DeviceRule,
    container::config::{Device, Security},
};

/// Entries of /dev that every container has of its own, and never those of the host.
const OWN: [&str; 5] = ["console", "fd", "mqueue", "pts", "shm"];

/// The nodes and the cgroup rules for the request's `devices` and for `named` ones, which CDI
/// brings. A privileged container gets everything in the host's /dev.
///
/// # Errors
/// `InvalidArgument` for a path that is not a device, and for unknown permissions.
pub(in crate::container) fn resolve(
    devices: &[Device],
    named: &[cdi::DeviceNode],
    security: &Security,
) -> Result<(Vec<spec::Device>, Vec<DeviceRule>)> {
    let mut nodes = Vec::new();
    let mut rules = Vec::new();
    if security.privileged {
        // No rules: a privileged container may use every device.
        descend(Path::new("/dev"), Path::new("/dev"), &mut nodes)
            .map_err(|error| Error::from(anyhow::Error::from(error)).during("read /dev"))?;
    }
    for device in devices {
        let wrong =
            |what: &str| Error::invalid(format!("device {}: {what}", device.host_path.display()));
        check_permissions(&device.permissions).map_err(|what| wrong(&what))?;
        let mut found = Vec::new();
        // Links on the host are followed: /dev/disk/by-id and its like are made of them.
        let path = device.host_path.canonicalize().map_err(|error| wrong(&error.to_string()))?;
        let target = Path::new("/").join(&device.container_path);
        descend(&path, &target, &mut found).map_err(|error| wrong(&error.to_string()))?;
        if found.is_empty() {
            return Err(wrong("it is neither a device nor a directory that has devices in it"));
        }
        rules.extend(found.iter().map(|node| rule(node, &device.permissions)));
        replace(&mut nodes, found);
    }
    // After the request's own, so that a CDI device replaces one with the same path.
    for device in named {
        let permissions = device.permissions.as_deref().unwrap_or("rwm");
        check_permissions(permissions)
            .map_err(|what| Error::invalid(format!("CDI: {}: {what}", device.path.display())))?;
        let node = named_node(device, security)?;
        rules.push(rule(&node, permissions));
        replace(&mut nodes, vec![node]);
    }
    Ok((nodes, rules))
}

/// Adds nodes. Each path is there once, with the node that was added last.
fn replace(nodes: &mut Vec<spec::Device>, found: Vec<spec::Device>) {
    nodes.retain(|node| found.iter().all(|asked| asked.path != node.path));
    nodes.extend(found);
}

fn check_permissions(permissions: &str) -> std::result::Result<(), String> {
    match !permissions.is_empty()
        && permissions.chars().all(|permission| "rwm".contains(permission))
    {
        true => Ok(()),
        false => {
            Err(format!("permissions {permissions:?} have letters other than r, w and m, or none"))
        }
    }
}

/// The node of a CDI device. What its CDI file leaves open is as on the host, except for the owner:
/// a container whose request names a user gets a device of that user, who could not open it
/// otherwise.
fn named_node(device: &cdi::DeviceNode, security: &Security) -> Result<spec::Device> {
    let source = device.host_path.as_ref().unwrap_or(&device.path);
    let wrong =
        |what: &str| Error::invalid(format!("CDI: device node {}: {what}", source.display()));
    if !device.path.is_absolute() || device.path == Path::new("/") {
        return Err(Error::invalid(format!(
            "CDI: {:?} cannot be the path of a device node: it must be absolute, and not /",
            device.path.display().to_string()
        )));
    }
    // -1 means "do not change" to chown(2), so that the node would stay root's.
    if [device.uid, device.gid].into_iter().flatten().any(|id| i32::try_from(id).is_err()) {
        return Err(wrong("its owner is out of range"));
    }
    let path = source.canonicalize().map_err(|error| wrong(&error.to_string()))?;
    let mut found = Vec::new();
    // CDI names single devices. A directory would bring all that are below it.
    if !path.is_dir() {
        descend(&path, &device.path, &mut found).map_err(|error| wrong(&error.to_string()))?;
    }
    let of_host = found.pop().ok_or_else(|| wrong("it is not a device"))?;
    let kind = match device.kind.as_deref() {
        None | Some("") => of_host.kind,
        Some("c" | "u") => DeviceKind::Char,
        Some("b") => DeviceKind::Block,
        Some(kind) => return Err(wrong(&format!("type {kind:?} is not b, c or u"))),
    };
    // Root can open the node whoever owns it, so that for root the host's owner stays.
    let asked = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id > 0);
    Ok(spec::Device {
        kind,
        major: device.major.unwrap_or(of_host.major),
        minor: device.minor.unwrap_or(of_host.minor),
        mode: device.file_mode.map_or(of_host.mode, |mode| mode & 0o777),
        uid: device.uid.or(asked(security.run_as_user)).unwrap_or(of_host.uid),
        gid: device.gid.or(asked(security.run_as_group)).unwrap_or(of_host.gid),
        ..of_host
    })
}

fn rule(node: &spec::Device, permissions: &str) -> DeviceRule {
    DeviceRule {
        block: node.kind == DeviceKind::Block,
        major: i64::from(node.major),
        minor: i64::from(node.minor),
        permissions: permissions.to_owned(),
    }
}

/// Adds the device at `path`, or all devices below that directory, as nodes at `target`.
///
/// Symbolic links below a directory are not followed: in /dev they point to a device that is met
/// under its own name anyway.
fn descend(path: &Path, target: &Path, nodes: &mut Vec<spec::Device>) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)?.flatten() {
            let name = entry.file_name();
            if path != Path::new("/dev") || OWN.iter().all(|own| name != *own) {
                descend(&entry.path(), &target.join(name), nodes)?;
            }
        }
    } else if kind.is_char_device() || kind.is_block_device() {
        nodes.push(spec::Device {
            path: target.to_owned(),
            source: path.to_owned(),
            kind: if kind.is_block_device() { DeviceKind::Block } else { DeviceKind::Char },
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, permissions: &str) -> Device {
        Device {
            host_path: path.into(),
            container_path: "/dev/x".into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn devices_are_resolved_or_refused() {
        let (nodes, rules) =
            resolve(&[device("/dev/zero", "rw")], &[], &Security::default()).unwrap();
        assert_eq!(
            (nodes[0].path.to_str(), nodes[0].major, nodes[0].minor),
            (Some("/dev/x"), 1, 5)
        );
        assert_eq!(
            (rules[0].block, rules[0].major, rules[0].minor, rules[0].permissions.as_str()),
            (false, 1, 5, "rw")
        );
        for (path, permissions) in [
            ("/no/such", "r"),
            ("/etc/passwd", "r"),
            ("/etc", "r"),
            ("/dev/zero", ""),
            ("/dev/zero", "x"),
        ] {
            let error =
                resolve(&[device(path, permissions)], &[], &Security::default()).unwrap_err();
            assert!(error.message.contains(path), "{error}");
        }
        // Everything of the host, each path once.
        let privileged = Security { privileged: true, ..Security::default() };
        let (all, rules) = resolve(&[device("/dev/zero", "r")], &[], &privileged).unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/null")) && rules.len() == 1);
    }

    #[test]
    fn named_nodes_take_what_they_do_not_say_from_the_host() {
        let node = |host: &str| cdi::DeviceNode {
            path: "/dev/gpu".into(),
            host_path: Some(host.into()),
            ..Default::default()
        };
        let user = Security { run_as_user: Some(7), ..Security::default() };
        let (nodes, rules) = resolve(&[], &[node("/dev/null")], &user).unwrap();
        assert_eq!((nodes[0].major, nodes[0].minor, nodes[0].mode, nodes[0].uid), (1, 3, 0o666, 7));
        assert_eq!(
            (nodes[0].path.to_str(), rules[0].permissions.as_str()),
            (Some("/dev/gpu"), "rwm")
        );
        let said = cdi::DeviceNode {
            minor: Some(5),
            file_mode: Some(0o600),
            uid: Some(0),
            ..node("/dev/null")
        };
        let (nodes, _) = resolve(&[], &[said], &user).unwrap();
        assert_eq!((nodes[0].minor, nodes[0].mode, nodes[0].uid), (5, 0o600, 0));
        let nobodys = cdi::DeviceNode { uid: Some(u32::MAX), ..node("/dev/null") };
        assert!(
            resolve(&[], &[nobodys], &user).unwrap_err().message.contains("owner is out of range")
        );
        for path in ["/no/such", "/etc/passwd", "/dev"] {
            assert!(resolve(&[], &[node(path)], &user).unwrap_err().message.contains(path));
        }
    }
}
