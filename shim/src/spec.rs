//! What to run, in the terms of the OCI runtime specification. Everything is resolved: the shim decides nothing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One container, or the built-in pause of a pod that shares its PID namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Container id, for messages only.
    pub id: String,
    /// Absolute path of the directory for `shim.sock`; exists.
    pub socket_dir: PathBuf,
    pub cgroups: Cgroups,
    pub namespaces: Namespaces,
    pub program: Program,
    pub stdio: Stdio,
}

/// What runs as the container's first process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Reap children until told to end; no rootfs is made.
    Pause,
    Container(Box<Container>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    pub rootfs: Rootfs,
    /// In the order of mounting.
    pub mounts: Vec<Mount>,
    /// Made after all mounts, besides those that /dev has anyway.
    #[serde(default)]
    pub devices: Vec<Device>,
    pub process: Process,
    /// Absolute paths inside the rootfs that are hidden: files behind /dev/null, directories behind an empty tmpfs.
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    #[serde(default)]
    pub hooks: Hooks,
    #[serde(default)]
    pub oci_runtime: Option<OciRuntime>,
    /// SELinux label of its files, where there is SELinux.
    #[serde(default)]
    pub label: Option<String>,
}

/// Another OCI runtime that makes the container, driven by its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OciRuntime {
    /// Absolute.
    pub path: PathBuf,
    /// For its `--root`.
    pub state: PathBuf,
    /// `linux.cgroupsPath`.
    pub cgroup: String,
    /// `linux.resources.devices`: it sets them anew.
    pub devices: Vec<DeviceAccess>,
}

/// One rule; absent numbers are all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceAccess {
    pub allow: bool,
    /// `a`, `b` or `c`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    pub access: String,
}

/// Programs of the host that run while the container is made, "POSIX-platform Hooks" of the OCI runtime specification. Those of one
/// kind run one after the other; one that fails fails the start, but for `poststop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Outside the container, when its namespaces are there and nothing is mounted.
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, when everything is mounted and the host's root is still `/`.
    pub create_container: Vec<Hook>,
    /// In the container's root, before its program.
    pub start_container: Vec<Hook>,
    /// Outside the container, when its program runs.
    pub poststart: Vec<Hook>,
    /// Outside the container, when it ended.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: PathBuf,
    /// As execv(3) takes them: the first is the program's name for itself.
    pub args: Vec<String>,
    /// `NAME=value`; nothing else is in its environment.
    pub env: Vec<String>,
    /// Seconds; absent: two minutes.
    pub timeout: Option<u32>,
}

/// Overlay of read-only layers, topmost first, below `upper` of the container's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rootfs {
    pub layers_dir: PathBuf,
    /// Names below `layers_dir`, so that the option string of old kernels stays short.
    pub layers: Vec<String>,
    pub readonly: bool,
}

/// Directories that the daemon made, with limits set; the program joins each before it starts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cgroups {
    /// Directory in the v2 tree (also on hybrid hosts), entered by CLONE_INTO_CGROUP; has `cgroup.kill`.
    pub unified: Option<PathBuf>,
    /// That directory is systemd's, which removes it once it is empty.
    #[serde(default)]
    pub is_scope: bool,
    /// Directories of v1 controllers.
    pub controllers: Vec<PathBuf>,
}

/// Mount and cgroup namespaces are always new.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespaces {
    pub net: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub pid: Namespace,
    /// The pod's own user namespace: what is set up as root before is handed to its root, everything later is done inside.
    #[serde(default)]
    pub user: Option<UserNamespace>,
    /// Bind the new PID namespace here, for containers that join it.
    #[serde(default)]
    pub pin_pid: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Its pin.
    pub path: PathBuf,
    /// Who its root is on the host.
    pub root_uid: u32,
    pub root_gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    Host,
    New,
    /// A namespace file: a pin, or /proc/PID/ns/...
    Join(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute, resolved inside the rootfs, which it cannot leave.
    pub path: PathBuf,
    /// On the host, without links: bound where a user namespace forbids to make a node.
    pub source: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Char,
    Block,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, resolved inside the rootfs, which it cannot leave.
    pub target: PathBuf,
    pub kind: MountKind,
    #[serde(default)]
    pub readonly: bool,
    #[serde(default)]
    pub nosuid: bool,
    #[serde(default)]
    pub nodev: bool,
    #[serde(default)]
    pub noexec: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    Proc,
    Sysfs,
    /// cgroup v2, or a tmpfs with one v1 hierarchy per name (`cpu`, `name=systemd`).
    Cgroup {
        v1: Vec<String>,
    },
    Mqueue,
    /// /dev: a tmpfs with the standard nodes and links, and devpts at /dev/pts.
    Dev,
    Tmpfs {
        /// Bytes; 0 leaves the kernel's default.
        size: u64,
        mode: u32,
    },
    Bind {
        source: PathBuf,
        propagation: Propagation,
        recursive_readonly: bool,
        /// Make a missing source, as a directory.
        create: bool,
        /// Show its owners through the pod's user namespace.
        #[serde(default)]
        idmap: bool,
        /// Give the source, and all that is below it, the label of the container's files.
        #[serde(default)]
        relabel: bool,
    },
    /// The files of another image, always read-only.
    Image {
        /// Below the layers' directory, topmost first.
        layers: Vec<String>,
        /// What of it; empty is all.
        sub_path: PathBuf,
    },
    /// A directory below `volumes` of the container's directory, filled with what the image has at the target.
    Volume {
        name: String,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    #[default]
    Private,
    Slave,
    Shared,
}

/// A process of the container: its first, or an exec.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// At least one; the first is looked up in PATH of `env` when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`, unique names.
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub user: User,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    /// -1000..=1000; clamped to what the kernel allows the daemon.
    pub oom_score_adj: Option<i32>,
    /// Load `seccomp.bpf` of the container's directory.
    pub seccomp: bool,
    /// AppArmor profile to change to with execve(2); absent leaves the daemon's.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// SELinux label to change to with execve(2); absent: what the policy says.
    #[serde(default)]
    pub selinux: Option<String>,
    #[serde(default)]
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub user: Identity,
    /// Absent: the user's primary group in /etc/passwd, else 0.
    pub group: Option<Identity>,
    pub supplementary: Vec<u32>,
    /// Add the memberships in the image's /etc/group (KEP 3619 `Merge`).
    pub merge_groups: bool,
}

/// A number is never looked up as a name (CVE-2024-40635).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    Id(u32),
    Name(String),
}

/// Bit N is capability number N of capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding, permitted and effective sets; the inheritable set is that of the ambient one.
    pub granted: u64,
    pub ambient: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rlimit {
    pub kind: RlimitKind,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RlimitKind {
    Core,
    Nofile,
    Nproc,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stdio {
    /// CRI log file; absent: output goes nowhere but to who attached.
    pub log: Option<PathBuf>,
    /// Keep a standard input open; else it is /dev/null.
    pub stdin: bool,
    /// Close it when the first attach that carried it ends.
    pub stdin_once: bool,
}

/// `pin.json`: the namespaces of a pod, bound to files so that no process has to hold them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// Files to bind to, created if missing; absent means the host's namespace.
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// Made first; it owns the others.
    #[serde(default)]
    pub user: Option<PinnedUser>,
    pub hostname: Option<String>,
    /// Names with dots or slashes, as sysctl(8) takes them.
    pub sysctls: Vec<(String, String)>,
    /// Directory to mount the pod's /dev/shm on, with its size in bytes.
    pub shm: Option<(PathBuf, u64)>,
    /// SELinux label of what is in it.
    #[serde(default)]
    pub label: Option<String>,
}

/// A user namespace to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedUser {
    pub path: PathBuf,
    pub uids: IdMapping,
    pub gids: IdMapping,
}

/// One line of uid_map, user_namespaces(7); the ids inside begin at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// Of root, outside.
    pub host: u32,
    pub length: u32,
}
