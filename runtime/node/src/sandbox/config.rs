//! What a client asked for, the record that berth keeps of a sandbox, and the files that pin its
//! namespaces.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::{id::SandboxId, layout::Layout};
use berth_cni::PortMapping;
use berth_shim::spec::{IdMapping, UserNamespace};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cgroup::Resources,
    network::{Bridge, INTERFACE, Pod},
    security::selinux,
};

/// CRI's `PodSandboxConfig`, checked and otherwise unchanged: statuses give it back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub origin: Origin,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
    pub hostname: String,
    /// Where the containers' logs go. If it is empty, containers have no log files.
    pub log_directory: PathBuf,
    /// What goes into resolv.conf. If it is absent, the pod has the host's.
    pub dns: Option<Dns>,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub cgroup_parent: String,
    /// What the pod uses besides its containers, and what they use together. The kubelet sets these
    /// limits itself on the pod's cgroup; berth only reports them.
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
    pub sysctls: BTreeMap<String, String>,
    pub namespaces: NamespaceModes,
    pub privileged: bool,
    pub selinux: selinux::Options,
    pub runtime_handler: String,
    /// Whether its network namespace is left as it is, with `lo` alone: the caller connects it, and
    /// no CNI plugin is run.
    pub unattached: bool,
    /// The sandbox whose network namespace it shares, in the place of one of its own.
    pub join_network: Option<SandboxId>,
    /// The sandbox whose IPC namespace and /dev/shm it shares.
    pub join_ipc: Option<SandboxId>,
    /// The size of its /dev/shm in bytes; 0 for that of every pod.
    pub shm_size: u64,
    /// Whether its containers have no /dev/shm.
    pub without_shm: bool,
    /// The bridges that it is attached to, in the place of the pods' network.
    pub bridges: Vec<Bridge>,
    /// The text of resolv.conf, in the place of one that is made of `dns`.
    pub resolv_conf: Option<String>,
    /// Lines of /etc/hosts before those of the own addresses.
    pub hosts: String,
    /// Follows the hostname in the name that /etc/hosts has for the own addresses.
    pub domainname: String,
    /// Lines at the end of its /etc/hosts.
    pub extra_hosts: Vec<String>,
}

/// Which API a sandbox was made by. Its containers are of the same, and neither API shows those of
/// the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    #[default]
    Kubernetes,
    Engine,
}

impl Origin {
    /// Of what has no record that says it: runs of engine containers have their ids.
    pub(crate) fn of_unrecorded(layout: &Layout, id: &str) -> Self {
        match layout.engine_container(id).symlink_metadata() {
            Ok(_) => Self::Engine,
            Err(_) => Self::Kubernetes,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Dns {
    /// The form in which CNI plugins get it (capability `dns` of the CNI conventions).
    fn capability(&self) -> serde_json::Value {
        json!({ "servers": self.servers, "searches": self.searches, "options": self.options })
    }
}

/// CRI's `NamespaceMode`: whose namespace a container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
    /// That of another container of the pod, `NamespaceModes::target`.
    Target,
}

/// CRI's `NamespaceOption`. Where the message is absent, every mode is `Pod`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceModes {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// `Node` or `Pod`; if it is absent, network and hostname decide (`Config::shares_uts`).
    pub uts: Option<NamespaceMode>,
    /// The id of a container, or a prefix of it; for `Target` only.
    pub target: String,
    /// The mapping of the pod's own user namespace (KEP 127); absent with the host's.
    pub user: Option<UserMapping>,
}

/// Which ids of the host stand for those of a pod. The pod's own begin at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMapping {
    pub uids: IdMapping,
    pub gids: IdMapping,
}

/// `meta.json`, the daemon's record of a sandbox. It is written before anything else is made, and
/// has all that `remove` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    pub id: SandboxId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub config: Config,
    /// The name of its network namespace below /var/run/netns, where `ip netns` finds it. Absent
    /// with the host's network.
    pub netns: Option<String>,
    /// Its SELinux labels, where SELinux is enabled.
    #[serde(default)]
    pub labels: Option<selinux::Labels>,
    /// The cgroup of the pause process. Absent where the containers do not share a PID namespace.
    #[serde(default)]
    pub pause_cgroup: Option<String>,
    /// As `netns`, of the sandbox whose network it shares.
    #[serde(default)]
    pub joined_netns: Option<String>,
}

/// The interfaces of a sandbox on these bridges, or of one on the pods' network.
pub(super) fn interfaces(bridges: &[Bridge]) -> Vec<String> {
    match bridges {
        [] => vec![INTERFACE.to_owned()],
        bridges => bridges.iter().map(|bridge| bridge.inside.clone()).collect(),
    }
}

impl Config {
    /// A name that no other sandbox has while this one exists. A request that the kubelet repeats
    /// has the same.
    pub fn unique_name(&self) -> String {
        format!("{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }

    /// The absolute path of a container's log, or `None` if it has none.
    pub fn log_path(&self, relative: &Path) -> Option<PathBuf> {
        // Without a directory of the pod or a name of the container, nobody reads a log.
        let wanted = !self.log_directory.as_os_str().is_empty() && !relative.as_os_str().is_empty();
        wanted.then(|| self.log_directory.join(relative))
    }

    /// Whether the pod has the host's UTS namespace. Unless it says so itself, it does if it has the
    /// host's network and asks for no hostname of its own.
    pub fn shares_uts(&self) -> bool {
        match self.namespaces.uts {
            Some(mode) => mode == NamespaceMode::Node,
            None => self.hostname.is_empty() && self.namespaces.network == NamespaceMode::Node,
        }
    }

    /// Whether it has a network namespace of its own, neither the host's nor another sandbox's.
    pub fn owns_network(&self) -> bool {
        self.namespaces.network != NamespaceMode::Node && self.join_network.is_none()
    }

    /// As `owns_network`, for IPC.
    pub fn owns_ipc(&self) -> bool {
        self.namespaces.ipc != NamespaceMode::Node && self.join_ipc.is_none()
    }

    /// What gethostname(2) returns in the pod. Without a hostname of its own that is the host's,
    /// since a new UTS namespace begins as a copy.
    ///
    /// # Errors
    /// The host's name cannot be read.
    pub fn effective_hostname(&self) -> anyhow::Result<String> {
        match self.hostname.as_str() {
            "" => Ok(nix::unistd::gethostname()
                .context("gethostname")?
                .to_string_lossy()
                .into_owned()),
            name => Ok(name.to_owned()),
        }
    }
}

impl Meta {
    /// The file that pins its own network namespace. `None` with the network of the host or of
    /// another sandbox.
    pub fn netns(&self) -> Option<PathBuf> {
        self.netns.as_deref().map(Layout::netns)
    }

    /// The file that pins the network namespace that it has, whoever's that is. `None` with the
    /// host's.
    pub fn network_namespace(&self) -> Option<PathBuf> {
        self.netns().or_else(|| self.joined_netns.as_deref().map(Layout::netns))
    }

    /// The pins of the sandbox whose IPC namespace it has. `None` with the host's.
    pub fn ipc_pins(&self, layout: &Layout) -> Option<Pins> {
        let owner = self.config.join_ipc.as_ref().unwrap_or(&self.id);
        (self.config.namespaces.ipc != NamespaceMode::Node).then(|| Pins::of(layout, owner))
    }

    /// The user namespace that its containers join. `None` where they have the host's.
    pub fn user_namespace(&self, layout: &Layout) -> Option<UserNamespace> {
        let user = self.config.namespaces.user?;
        Some(UserNamespace {
            path: Pins::of(layout, &self.id).user,
            root_uid: user.uids.host,
            root_gid: user.gids.host,
        })
    }

    /// What CNI is told about it, for each of its interfaces. Nothing where CNI has nothing to do,
    /// as with the host's network.
    pub(super) fn pods(&self) -> Vec<Pod> {
        if self.config.unattached {
            return Vec::new();
        }
        match self.config.bridges.as_slice() {
            [] => self.pod(None).into_iter().collect(),
            bridges => bridges.iter().filter_map(|bridge| self.pod(Some(bridge))).collect(),
        }
    }

    /// What CNI is told about it for the network of pods, or for a bridge.
    pub(super) fn pod(&self, bridge: Option<&Bridge>) -> Option<Pod> {
        // The ports of the host lead to one address.
        let has_ports = bridge.is_none_or(|bridge| bridge.is_default);
        Some(Pod {
            bridge: bridge.cloned(),
            id: self.id.to_string(),
            name: self.config.name.clone(),
            namespace: self.config.namespace.clone(),
            uid: self.config.uid.clone(),
            netns: self.netns()?,
            ports: if has_ports { self.config.ports.clone() } else { Vec::new() },
            annotations: self.config.annotations.clone(),
            dns: self.config.dns.as_ref().map(Dns::capability),
            cgroup_parent: self.config.cgroup_parent.clone(),
        })
    }
}

/// Files that pin the pod's namespaces. A namespace without processes lives for as long as a mount
/// of it does (namespaces(7)).
#[derive(Clone, Debug)]
pub struct Pins {
    pub ipc: PathBuf,
    pub uts: PathBuf,
    pub pid: PathBuf,
    /// A directory with the /proc of that PID namespace, on kernels before Linux 6.18.
    pub proc: PathBuf,
    pub user: PathBuf,
    /// The directory that is the pod's /dev/shm.
    pub shm: PathBuf,
}

impl Pins {
    /// Where the pins of this sandbox are, below the state directory.
    pub fn of(layout: &Layout, id: &SandboxId) -> Self {
        let state = layout.sandbox_state(id);
        let [ipc, uts, pid, proc, user, shm] =
            ["ipc", "uts", "pid", "proc", "user", "shm"].map(|name| state.join(name));
        Self { ipc, uts, pid, proc, user, shm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<Meta>("sandbox_meta.json");
    }
}
