//! `spec.json`: what to run, in the terms of the OCI runtime specification. Everything is decided
//! already; only names of users are left to be resolved, in the image's own files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One container, or the built-in pause of a pod that shares its PID namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Container id: what hooks and other OCI runtimes are told.
    pub id: String,
    /// The pod's id, for a daemon whose own record of the container is damaged. The shim does not
    /// use it.
    #[serde(default)]
    pub sandbox: String,
    /// Absolute path of the directory for `shim.sock`, below the state directory. It exists.
    pub socket_dir: PathBuf,
    /// Absolute paths of the daemon's own records, without which it cannot list the container. The
    /// shim syncs them before it writes `exit.json`, so that a container of which a power loss
    /// leaves the end is left with it.
    #[serde(default)]
    pub records: Vec<PathBuf>,
    pub cgroups: Cgroups,
    pub namespaces: Namespaces,
    pub program: Program,
    pub stdio: Stdio,
    /// SELinux label for the empty root of the pause process; absent without SELinux.
    #[serde(default)]
    pub label: Option<String>,
}

/// What runs as the container's first process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Reaps children until it is told to end, in an empty root.
    Pause,
    Container(Box<Container>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    pub rootfs: Rootfs,
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Made after all mounts, in addition to the standard devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    pub process: Process,
    /// Absolute paths inside the rootfs that are hidden: files behind /dev/null, directories behind
    /// an empty tmpfs. Those that do not exist are passed over.
    pub masked_paths: Vec<PathBuf>,
    /// Absolute paths inside the rootfs that are read-only, with everything mounted below them.
    pub readonly_paths: Vec<PathBuf>,
    #[serde(default)]
    pub hooks: Hooks,
    /// Absent if the shim makes the container itself.
    #[serde(default)]
    pub oci_runtime: Option<OciRuntime>,
    /// SELinux label of the container's files; absent without SELinux.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether the first process is one of the shim's, which reaps orphans, passes signals on to the
    /// program, and ends as that does.
    #[serde(default)]
    pub init: bool,
}

/// Another OCI runtime that makes the container, driven by its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OciRuntime {
    /// Absolute.
    pub path: PathBuf,
    /// The value of its `--root`.
    pub state: PathBuf,
    /// `linux.cgroupsPath`.
    pub cgroup: String,
    /// `linux.resources.devices`. The runtime replaces the device filter of the cgroup.
    pub devices: Vec<DeviceAccess>,
}

/// One rule about devices. An absent number stands for all.
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

/// Programs that run at certain moments of the container's life ("POSIX-platform Hooks" of the OCI
/// runtime specification). Those of one kind run one after the other. If one fails, so does the
/// start, except with `poststop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Outside the container, when its namespaces exist and nothing is mounted.
    pub prestart: Vec<Hook>,
    /// As `prestart`, and after it.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, when everything is mounted and the host's root is still `/`.
    pub create_container: Vec<Hook>,
    /// In the container's root, before its program and with no more privileges than that.
    pub start_container: Vec<Hook>,
    /// Outside the container, when its program runs.
    pub poststart: Vec<Hook>,
    /// Outside the container, when it has ended.
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
    /// In seconds; absent means two minutes.
    pub timeout: Option<u32>,
}

/// An overlay: a writable directory over read-only layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rootfs {
    /// Absolute.
    pub layers_dir: PathBuf,
    /// Names below `layers_dir`, or absolute paths, topmost first. Most are names so that the option
    /// string of old kernels, one page, has room for more of them.
    pub layers: Vec<String>,
    /// A layer below all others, with places for the mounts. It is made by the first container that
    /// has these mounts. Absolute; absent if the places are to be made in `upper`.
    #[serde(default)]
    pub mount_points: Option<PathBuf>,
    /// Whether the root itself is mounted read-only.
    pub readonly: bool,
    /// The directory that has `upper` and `work`. Absolute; absent if that is the container's own.
    #[serde(default)]
    pub writable: Option<PathBuf>,
}

/// Directories that the daemon has made, with limits set. The first process is in all of them
/// before it runs its program.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cgroups {
    /// Directory in the v2 tree, on hybrid hosts as well. It is entered by CLONE_INTO_CGROUP, and
    /// has `cgroup.kill`.
    pub unified: Option<PathBuf>,
    /// Whether that directory is a scope of systemd, which removes it once it is empty.
    #[serde(default)]
    pub is_scope: bool,
    /// Directories of v1 controllers.
    pub controllers: Vec<PathBuf>,
}

/// The namespaces of the first process. Its mount namespace is always new.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespaces {
    pub net: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub pid: Namespace,
    /// Whose PID namespace `pid` is, where that is the one of another container. `pid` then names
    /// it by a process id, which can be another process' by the time it is opened.
    #[serde(default)]
    pub target: Option<Target>,
    /// The pod's user namespace, if it has one of its own.
    #[serde(default)]
    pub user: Option<UserNamespace>,
    /// The file to which the new PID namespace is bound, for the containers that will join it.
    #[serde(default)]
    pub pin_pid: Option<PathBuf>,
    /// The directory on which a /proc of the pod's PID namespace is mounted if the kernel cannot
    /// make one from outside. The first process of the namespace leaves it there, and those that
    /// join it copy it.
    #[serde(default)]
    pub pin_proc: Option<PathBuf>,
    /// Whether the cgroup namespace is the host's.
    #[serde(default)]
    pub host_cgroup: bool,
}

/// The first process of another container: together its numbers name one process until the next
/// boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub pid: u32,
    /// As `record::Started` has it.
    pub start_time: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// The file to which it is bound.
    pub path: PathBuf,
    /// The ids that its root has on the host.
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
    /// The device on the host, without links in its path. It is bound if the container has a user
    /// namespace, in which nodes cannot be made.
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
    /// The host's sysfs, without what is mounted below it. A user namespace that does not own the
    /// network namespace may not mount a sysfs of its own (KEP 5607).
    HostSysfs,
    /// cgroup v2 if `v1` is empty, otherwise a tmpfs with one v1 hierarchy for each name (`cpu`,
    /// `name=systemd`).
    Cgroup {
        v1: Vec<String>,
        /// A directory of the host for each of those names, which is shown in its place: without a
        /// cgroup namespace, a hierarchy would show the cgroups of the whole host. Empty with one.
        #[serde(default)]
        own: Vec<PathBuf>,
    },
    Mqueue,
    /// /dev: a tmpfs with the standard nodes and links, and devpts at /dev/pts.
    Dev,
    Tmpfs {
        /// Bytes; 0 leaves the kernel's default.
        size: u64,
        /// 0 for that of the directory it covers, or what a tmpfs has if there was none.
        mode: u32,
        /// More options of tmpfs(5), by name.
        #[serde(default)]
        options: Vec<(String, String)>,
    },
    Bind {
        source: PathBuf,
        propagation: Propagation,
        recursive_readonly: bool,
        /// Whether a missing source is made, as a directory.
        create: bool,
        /// Whether owners are shown through the pod's user namespace.
        #[serde(default)]
        idmap: bool,
        /// Whether the source and everything below it get the SELinux label of the container's
        /// files.
        #[serde(default)]
        relabel: bool,
        /// Whether what is mounted below the source is left out.
        #[serde(default)]
        non_recursive: bool,
    },
    /// The files of another image, always read-only.
    Image {
        /// Below the layers' directory, topmost first.
        layers: Vec<String>,
        /// The part of the image that is mounted; empty for all of it.
        sub_path: PathBuf,
    },
    /// A volume that the image declares: a directory below `volumes` of the container's directory,
    /// filled with what the image has at the target.
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
    /// At least one. The first is looked up in PATH of `env` if it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`, unique names.
    pub env: Vec<String>,
    /// Absolute; made if it is missing.
    pub cwd: PathBuf,
    pub user: User,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    /// Limits beside those, set after them.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// -1000 to 1000. If the daemon may not lower its own value, that one is kept.
    pub oom_score_adj: Option<i32>,
    /// Whether `seccomp.bpf` of the container's directory is loaded.
    pub seccomp: bool,
    /// AppArmor profile that execve(2) changes to; absent: the daemon's is kept.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// SELinux label that execve(2) changes to; absent: the policy decides.
    #[serde(default)]
    pub selinux: Option<String>,
    #[serde(default)]
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub user: Identity,
    /// Absent: the user's primary group in /etc/passwd, or 0 if there is no entry.
    pub group: Option<Identity>,
    pub supplementary: Vec<u32>,
    /// Whether the memberships in the image's /etc/group are added (KEP 3619, `Merge`).
    pub merge_groups: bool,
    /// More supplementary groups, by their names in the image's /etc/group.
    #[serde(default)]
    pub group_names: Vec<String>,
}

/// A number is never looked up as a name (CVE-2024-40635).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    Id(u32),
    Name(String),
}

/// Sets of capabilities: bit N stands for the capability with number N (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bounding, permitted and effective sets.
    pub granted: u64,
    /// The ambient and the inheritable set.
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

/// A limit of any kind. `Rlimit` cannot be extended: an older build would not read its new variants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As in RLIMIT_* of getrlimit(2), without that and in lower case.
    pub name: String,
    /// `u64::MAX` is no limit.
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stdio {
    /// The CRI log file; absent: output goes to attached clients only.
    pub log: Option<PathBuf>,
    /// The pod's log directory, which `log` is below. From here on no link is followed. Absent: the
    /// directory that `log` is in.
    #[serde(default)]
    pub log_directory: Option<PathBuf>,
    /// Whether there is a standard input that stays open; otherwise it is /dev/null.
    pub stdin: bool,
    /// Whether it is closed when the first client is gone that attached to it.
    pub stdin_once: bool,
    /// Whether output waits for the first client that attaches, some seconds at most, and with it
    /// the end of the container: that client gets all of it.
    #[serde(default)]
    pub awaits_attach: bool,
    /// Whether the container waits for attached clients that do not keep up; otherwise they lose
    /// output.
    #[serde(default)]
    pub lossless: bool,
    /// Absent: the log is one file, which somebody else renames when it is long enough.
    #[serde(default)]
    pub rotation: Option<LogRotation>,
    /// The size of the container's terminal when its program starts; absent: 0 by 0.
    #[serde(default)]
    pub window: Option<Window>,
}

/// When a log goes on in a new file. The old ones are called `LOG.1`, `LOG.2` and so on, `LOG.1`
/// being the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// A file takes no more records once it has so many bytes.
    pub max_bytes: u64,
    /// How many files there are, with the one that is written to; at least 1.
    pub max_files: u32,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub rows: u16,
    pub columns: u16,
}

/// `pin.json`: the namespaces of a pod, bound to files so that no process has to hold them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// The files to bind to, which are made. Absent: the pod has the host's namespace.
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// The pod's own user namespace, which owns the others; absent if it has none.
    #[serde(default)]
    pub user: Option<PinnedUser>,
    pub hostname: Option<String>,
    /// Names with dots or slashes, as sysctl(8) takes them.
    pub sysctls: Vec<(String, String)>,
    /// The directory to mount the pod's /dev/shm on, and its size in bytes.
    pub shm: Option<(PathBuf, u64)>,
    /// SELinux label of the files in it.
    #[serde(default)]
    pub label: Option<String>,
}

/// A user namespace to make, and the file to bind it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedUser {
    pub path: PathBuf,
    pub uids: IdMapping,
    pub gids: IdMapping,
}

/// One line of uid_map, user_namespaces(7); the ids inside begin at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The id outside that is 0 inside.
    pub host: u32,
    pub length: u32,
}
