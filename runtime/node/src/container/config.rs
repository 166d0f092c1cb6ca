//! What a client asked for, and the record that berth keeps of a container.

use std::{collections::BTreeMap, path::PathBuf};

use berth_base::id::{ContainerId, SandboxId};
use berth_image::LayerKey;
use berth_shim::spec::{LogRotation, Ulimit, Window};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{DeviceRule, Devices, Resources},
    sandbox::{NamespaceModes, UserMapping},
    security::{apparmor::Profile, selinux},
};

/// CRI's `ContainerConfig`, checked and otherwise unchanged: statuses give it back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub name: String,
    pub attempt: u32,
    /// An image's id or name.
    pub image: String,
    pub user_specified_image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<(String, String)>,
    /// Variables that it does not have from its image or by default.
    pub unset_env: Vec<String>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Names of CDI devices, such as `nvidia.com/gpu=0`.
    pub cdi_devices: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// A signal number of Linux, not of CRI.
    pub stop_signal: Option<i32>,
    pub resources: Resources,
    pub security: Security,
    /// Limits in the place of, or beside, those that every container has.
    pub ulimits: Vec<Ulimit>,
    pub tmpfs: Vec<Tmpfs>,
    /// Devices that it may use without having nodes of them.
    pub device_rules: Vec<DeviceRule>,
    /// Whether a process of berth's is in front of its program, which reaps orphans and passes
    /// signals on.
    pub init: bool,
    /// The size of its terminal at the start; absent if it is not known yet.
    pub window: Option<Window>,
    /// When its log goes on in a new file; absent if that is the caller's business.
    pub log_rotation: Option<LogRotation>,
    /// Whether what the image declares as volumes is among `mounts`, so that none is made.
    #[serde(default)]
    pub has_volumes: bool,
    /// Whether what it writes waits for the first Attach, some seconds at most, so that its client
    /// gets all of it. The container counts as running for that long.
    pub awaits_attach: bool,
    /// A directory of the caller's with `upper` and `work` in it, which outlives the container: what
    /// it writes is in there, and is not removed with it. Absolute; absent if the container has a
    /// layer of its own.
    pub writable_layer: Option<PathBuf>,
    /// A directory of the caller's that is a layer below those of the image. Absolute.
    pub base_layer: Option<PathBuf>,
}

/// CRI's `Device`, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Any of `r` (read), `w` (write) and `m` (mknod), as in `rwm`.
    pub permissions: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: MountSource,
    pub container_path: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: berth_shim::spec::Propagation,
    pub selinux_relabel: bool,
    /// Show the files' owners through this mapping (an idmapped mount); it is that of the pod.
    pub mapping: Option<UserMapping>,
    /// Whether what is mounted below the source is left out.
    #[serde(default)]
    pub non_recursive: bool,
    /// Checked options such as `noexec` (KEP 5855). Of two that contradict each other the later one
    /// counts.
    pub options: Vec<String>,
}

/// An empty file system in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub container_path: PathBuf,
    /// As mount(8) takes them: `noexec`, `size=64m`, `mode=1770`. Without any, the kernel's defaults.
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    Host(PathBuf),
    /// The files of an image (KEP 4639).
    Image {
        image: String,
        sub_path: PathBuf,
        /// Which image that was when the container was created; empty before.
        image_ref: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    pub privileged: bool,
    pub namespaces: NamespaceModes,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub ambient_capabilities: Vec<String>,
    pub run_as_user: Option<i64>,
    pub run_as_username: String,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    /// `Strict` of KEP 3619: group memberships of the image's /etc/group are not added.
    pub strict_groups: bool,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub seccomp: Seccomp,
    /// A profile in the JSON of Docker or of the OCI runtime specification, in the place of
    /// `seccomp`.
    pub seccomp_profile: Option<String>,
    /// `user[:group]` of names or numbers, in the place of the image's.
    pub user: Option<String>,
    /// Supplemental groups by their names in the image.
    pub group_names: Vec<String>,
    /// Whether its cgroup namespace is the host's.
    pub host_cgroup: bool,
    /// Whether it may change its own cgroup, and make others below.
    pub writable_cgroups: bool,
    pub apparmor: Profile,
    pub selinux: selinux::Options,
}

impl Security {
    /// Whether there is a seccomp filter. Privileged containers have none, whatever profile the
    /// request names, as with containerd; but one that carries a profile of its own has that.
    pub(super) fn is_filtered(&self) -> bool {
        let named = self.seccomp != Seccomp::Unconfined && !self.privileged;
        named || self.seccomp_profile.is_some()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// The path of a file on this machine, in the JSON of the OCI runtime specification.
    Localhost(PathBuf),
}

/// `meta.json`, the daemon's record of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    /// Its name with that of its pod and the attempt: no two containers have the same.
    pub unique_name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub config: Config,
    /// The digest of the image's config, `sha256:` and 64 hexadecimal digits.
    pub image_id: String,
    /// The image's name when the container was created. The name may belong to another image by
    /// now.
    #[serde(default)]
    pub(super) image_name: String,
    /// The reference that the kubelet knows the image by: a repository digest, else the image's id.
    pub image_ref: String,
    /// The layers of its image and of the images that it mounts. They are not deleted for as long
    /// as the container exists.
    pub layers: Vec<LayerKey>,
    /// The layer with the places of its mounts (`mount_points`). Those of earlier daemons have none.
    #[serde(default)]
    pub(super) mount_points: Option<String>,
    /// Its path below the root of the hierarchies, without a leading slash.
    pub cgroup: String,
    /// The rules for its devices, with the numbers that they had when it was created.
    pub device_rules: Vec<DeviceRule>,
    pub log_path: Option<PathBuf>,
    /// The signal in force. It is recorded because the image may be gone when it is needed.
    pub stop_signal: i32,
}

impl Meta {
    /// The image's name, else its id. The record of an earlier daemon has no name; then it is what
    /// the request asked for.
    pub fn image_name(&self) -> &str {
        if self.image_name.is_empty() { &self.config.image } else { &self.image_name }
    }

    /// What the device controller is to allow.
    pub(super) fn devices(&self) -> Devices {
        match self.config.security.privileged {
            true => Devices::All,
            false => Devices::Only(self.device_rules.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<Meta>("container_meta.json");
    }
}
