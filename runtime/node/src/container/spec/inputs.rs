//! What a container's specification is built from.

use std::{collections::BTreeMap, path::PathBuf};

use berth_base::layout::Layout;
use berth_shim::spec::{Cgroups, Device, OciRuntime};
use oci_spec::image::ImageConfiguration;

use crate::{cdi, container::config::Config, sandbox, security::selinux::Labels};

/// Everything that a container's specification depends on. Whatever needs the disk or the kernel
/// was resolved before, so that building it is a pure function.
pub(in crate::container) struct Inputs<'a> {
    pub id: &'a str,
    pub config: &'a Config,
    pub sandbox: &'a sandbox::Meta,
    /// The pod's hostname, or the host's where the pod has none of its own.
    pub hostname: String,
    pub image: &'a ImageConfiguration,
    /// The image's layers: paths relative to the layers' directory, topmost first.
    pub layers: Vec<String>,
    pub layout: &'a Layout,
    /// Where the shim listens; on a tmpfs.
    pub socket_dir: PathBuf,
    /// What the shim syncs before it records the container's end.
    pub records: [PathBuf; 3],
    pub log: Option<PathBuf>,
    pub cgroups: Cgroups,
    /// The layers of the images that it mounts, by the name that the request uses.
    pub mounted: BTreeMap<String, Vec<String>>,
    pub devices: Vec<Device>,
    /// What the CDI devices that it names bring along.
    pub named: &'a cdi::Edits,
    /// The OCI runtime of its handler; absent where berth-shim itself makes the container.
    pub oci_runtime: Option<OciRuntime>,
    /// The AppArmor profile to run under.
    pub apparmor: Option<String>,
    /// SELinux labels, where SELinux is enabled.
    pub labels: Option<Labels>,
    /// The v1 hierarchies to show at /sys/fs/cgroup; empty with cgroup v2.
    pub v1_names: Vec<String>,
    /// The container's own directory in each of them, which is what it sees if its cgroup namespace
    /// is the host's; else empty.
    pub own_v1: Vec<PathBuf>,
}
