//! Devices of the host in a container: nodes to make, and rules for the cgroup.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use berth_shim::spec::{self, DeviceKind};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::DeviceRule,
    error::{Error, Result},
};

/// What was asked for (`Device` of CRI).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// Directories and nodes of /dev that every container has of its own.
const OWN: [&str; 5] = ["console", "fd", "mqueue", "pts", "shm"];

/// The nodes and the rules for `devices`; with `privileged`, for everything in /dev.
///
/// # Errors
/// `InvalidArgument` for a path that is no device, and for unknown permissions.
pub(super) fn resolve(devices: &[Device], privileged: bool) -> Result<(Vec<spec::Device>, Vec<DeviceRule>)> {
    let (mut nodes, mut rules) = (Vec::new(), Vec::new());
    if privileged {
        // Everything is allowed there: no rules.
        descend(Path::new("/dev"), Path::new("/dev"), &mut nodes)
            .map_err(|error| Error::from(anyhow::Error::from(error)).during("read /dev"))?;
    }
    for device in devices {
        let wrong = |what: &str| Error::invalid(format!("device {}: {what}", device.host_path.display()));
        if device.permissions.is_empty() || !device.permissions.chars().all(|permission| "rwm".contains(permission)) {
            return Err(wrong(&format!("permissions {:?} are not of r, w and m", device.permissions)));
        }
        let mut found = Vec::new();
        // Links on the host are followed: /dev/disk/by-id and its like are made of them.
        let path = device.host_path.canonicalize().map_err(|error| wrong(&error.to_string()))?;
        let target = Path::new("/").join(&device.container_path);
        descend(&path, &target, &mut found).map_err(|error| wrong(&error.to_string()))?;
        if found.is_empty() {
            return Err(wrong("neither a device nor a directory with devices"));
        }
        rules.extend(found.iter().map(|node| rule(node, &device.permissions)));
        nodes.retain(|node| found.iter().all(|asked| asked.path != node.path));
        nodes.extend(found);
    }
    Ok((nodes, rules))
}

fn rule(node: &spec::Device, permissions: &str) -> DeviceRule {
    DeviceRule {
        block: node.kind == DeviceKind::Block,
        major: i64::from(node.major),
        minor: i64::from(node.minor),
        permissions: permissions.to_owned(),
    }
}

/// `path` itself, or the devices below it; links in a directory lead to what is there under another name.
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
        Device { host_path: path.into(), container_path: "/dev/x".into(), permissions: permissions.into() }
    }

    #[test]
    fn devices_are_resolved_or_refused() {
        let (nodes, rules) = resolve(&[device("/dev/zero", "rw")], false).unwrap();
        assert_eq!((nodes[0].path.to_str(), nodes[0].major, nodes[0].minor), (Some("/dev/x"), 1, 5));
        assert_eq!(
            (rules[0].block, rules[0].major, rules[0].minor, rules[0].permissions.as_str()),
            (false, 1, 5, "rw")
        );
        for (path, permissions) in
            [("/no/such", "r"), ("/etc/passwd", "r"), ("/etc", "r"), ("/dev/zero", ""), ("/dev/zero", "x")]
        {
            let error = resolve(&[device(path, permissions)], false).unwrap_err();
            assert!(error.message.contains(path), "{error}");
        }
        // Everything of the host, each path once.
        let (all, rules) = resolve(&[device("/dev/zero", "r")], true).unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/null")) && rules.len() == 1);
    }
}
