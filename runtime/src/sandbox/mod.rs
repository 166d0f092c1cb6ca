//! A pod sandbox: namespaces pinned to files, a network attachment, and the files that its containers share. Not a process.

mod files;
mod remove;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, anyhow};
use berth_cni::PortMapping;
use berth_shim::{
    record::{self, Found},
    spec::{IdMapping, UserNamespace},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) use remove::{remove, stop};
pub(crate) use run::run;

use crate::{
    cgroup::{Resources, Sampler},
    error::Result,
    events,
    id::SandboxId,
    layout::{self, Layout},
    machine::Machine,
    network::{Networks, Pod},
    selinux,
    shim::{self, Connection},
};

/// What was asked for (`PodSandboxConfig`); checked, and kept as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
    pub hostname: String,
    /// Empty: containers have no log files.
    pub log_directory: PathBuf,
    /// Absent: the host's resolv.conf.
    pub dns: Option<Dns>,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub cgroup_parent: String,
    /// What the pod uses besides its containers, and their sum; the kubelet's own business, and shown as it says.
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
    pub sysctls: BTreeMap<String, String>,
    pub namespaces: NamespaceModes,
    pub privileged: bool,
    pub selinux: selinux::Options,
    pub runtime_handler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// `NamespaceMode`, as far as a mode needs no more words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
    /// Of another container of the pod.
    Target,
}

/// `NamespaceOption`; all `Pod` when the message is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamespaceModes {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub target: String,
    /// The pod's own user namespace; absent: the host's.
    #[serde(default)]
    pub user: Option<UserMapping>,
}

/// Which ids of the host are those of a pod, whose own begin at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserMapping {
    pub uids: IdMapping,
    pub gids: IdMapping,
}

/// `meta.json`: all that `remove` needs, written first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub id: SandboxId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub config: Config,
    /// Name below /var/run/netns; absent with the host's network.
    pub netns: Option<String>,
    /// Where SELinux is enabled.
    #[serde(default)]
    pub labels: Option<selinux::Labels>,
}

/// `ready.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    boot_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    NotReady,
}

/// What readers see.
#[derive(Clone, Debug)]
struct Snapshot {
    state: State,
    addresses: Vec<IpAddr>,
    /// Overhead and resources in force: those of `meta` until the first update.
    sizes: (Option<Resources>, Option<Resources>),
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub meta: Meta,
    snapshot: Mutex<Snapshot>,
    /// One verb at a time changes a sandbox.
    pub busy: tokio::sync::Mutex<()>,
    /// Of the whole pod.
    pub sampler: Mutex<Sampler>,
    _level: Option<selinux::Level>,
}

impl Config {
    /// Unique for as long as the sandbox exists.
    pub(crate) fn unique_name(&self) -> String {
        format!("{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }

    pub(crate) fn log_path(&self, relative: &Path) -> Option<PathBuf> {
        let wanted = !self.log_directory.as_os_str().is_empty() && !relative.as_os_str().is_empty();
        wanted.then(|| self.log_directory.join(relative))
    }
}

impl Meta {
    pub(crate) fn netns(&self) -> Option<PathBuf> {
        self.netns.as_deref().map(Layout::netns)
    }

    /// What its containers join.
    pub(crate) fn user_namespace(&self, layout: &Layout) -> Option<UserNamespace> {
        let path = Pins::of(layout, &self.id).user;
        let namespace = |user: UserMapping| UserNamespace { path, root_uid: user.uids.host, root_gid: user.gids.host };
        self.config.namespaces.user.map(namespace)
    }

    /// `None` with the host's network.
    fn pod(&self) -> Option<Pod> {
        let dns = |dns: &Dns| json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        Some(Pod {
            id: self.id.to_string(),
            name: self.config.name.clone(),
            namespace: self.config.namespace.clone(),
            uid: self.config.uid.clone(),
            netns: self.netns()?,
            ports: self.config.ports.clone(),
            annotations: self.config.annotations.clone(),
            dns: self.config.dns.as_ref().map(dns),
            cgroup_parent: self.config.cgroup_parent.clone(),
        })
    }
}

/// Files that pin what the pod's containers join.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    pub ipc: PathBuf,
    pub uts: PathBuf,
    pub pid: PathBuf,
    pub user: PathBuf,
    /// Directory with the pod's /dev/shm.
    pub shm: PathBuf,
}

impl Pins {
    pub(crate) fn of(layout: &Layout, id: &SandboxId) -> Self {
        let state = layout.sandbox_state(id);
        let [ipc, uts, pid, user, shm] = ["ipc", "uts", "pid", "user", "shm"].map(|name| state.join(name));
        Self { ipc, uts, pid, user, shm }
    }
}

impl Sandbox {
    fn new(machine: &Machine, meta: Meta, state: State, addresses: Vec<IpAddr>) -> Self {
        let sizes = (meta.config.overhead.clone(), meta.config.resources.clone());
        let level = meta.labels.as_ref().map(|labels| machine.selinux.keep(labels));
        let snapshot = Mutex::new(Snapshot { state, addresses, sizes });
        Self { meta, snapshot, busy: tokio::sync::Mutex::default(), sampler: Mutex::default(), _level: level }
    }

    /// UpdatePodSandboxResources: the kubelet has changed the pod's cgroup; this is what the status shows from now on.
    pub(crate) async fn update(
        &self,
        layout: &Layout,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let _busy = self.busy.lock().await;
        let mut meta = self.meta.clone();
        let (old_overhead, old_resources) = self.sizes();
        meta.config.overhead = overhead.or(old_overhead);
        meta.config.resources = resources.or(old_resources);
        let path = layout.sandbox(&self.meta.id).join(layout::sandbox::META);
        record::write(&path, &meta).with_context(|| format!("write {}", path.display()))?;
        self.snapshot().sizes = (meta.config.overhead, meta.config.resources);
        Ok(())
    }

    /// Overhead and resources in force.
    pub(crate) fn sizes(&self) -> (Option<Resources>, Option<Resources>) {
        self.snapshot().sizes.clone()
    }

    /// Reads a sandbox back from disk; `None` if it was never ready, so that it only waits for its removal.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub(crate) fn load(machine: &Machine, id: &SandboxId) -> anyhow::Result<Option<Self>> {
        let Some((meta, state)) = look(&machine.layout.sandbox(id), &machine.boot_id)? else { return Ok(None) };
        let attachment = Networks::attachment(&machine.layout, id.as_str())?;
        Ok(Some(Self::new(machine, meta, state, attachment.map_or_else(Vec::new, |attachment| attachment.addresses()))))
    }

    /// What an undo could not undo: there to be stopped and removed again.
    pub(crate) fn leftover(machine: &Machine, id: &SandboxId) -> Option<Self> {
        let meta = record::read::<Meta>(&machine.layout.sandbox(id).join(layout::sandbox::META)).ok()?.record()?;
        Some(Self::new(machine, meta, State::NotReady, Vec::new()))
    }

    /// A pod that shares its PID namespace is not ready any more when the process that holds it ends.
    pub(crate) fn watch_pause(self: &Arc<Self>, machine: &Arc<Machine>) {
        if self.meta.config.namespaces.pid != NamespaceMode::Pod || self.state() != State::Ready {
            return;
        }
        let (sandbox, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            if let Ok(connection) = Connection::open(&run::pause_state(&machine, &sandbox.meta.id)).await {
                connection.closed().await;
            }
            sandbox.end(&machine);
        });
    }

    /// Not ready from here on.
    fn end(&self, machine: &Machine) {
        let before = std::mem::replace(&mut self.snapshot().state, State::NotReady);
        if before == State::Ready {
            machine.changes.tell(events::Kind::Stopped, &self.meta.id, &self.meta.id);
        }
    }

    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> State {
        self.snapshot().state
    }

    /// Of the pod's interface, the primary first; kept after the end, as the kubelet reads them then too.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.snapshot().addresses.clone()
    }

    /// For the verbose status: whether the CNI plugins still find what they made.
    pub(crate) async fn check_network(&self, machine: &Machine) -> anyhow::Result<&'static str> {
        // No plugin is run twice at once for a pod.
        let Ok(_busy) = self.busy.try_lock() else { return Ok("not asked: the pod is being changed") };
        if self.state() != State::Ready || self.meta.netns.is_none() {
            return Ok("not asked: the pod has no network of its own");
        }
        machine.networks.check(self.meta.id.as_str()).await.map(|()| "OK")
    }

    /// For the verbose status: what the CNI plugins answered.
    pub(crate) fn cni_result(&self, layout: &Layout) -> serde_json::Value {
        let attachment = Networks::attachment(layout, self.meta.id.as_str());
        json!(attachment.ok().flatten().and_then(|attachment| attachment.result))
    }
}

/// What a sandbox's directory says: `None` if it was never ready.
///
/// # Errors
/// It cannot be read.
pub(crate) fn look(directory: &Path, boot_id: &str) -> anyhow::Result<Option<(Meta, State)>> {
    let Found::Record(meta) = record::read::<Meta>(&directory.join(layout::sandbox::META))? else {
        return Ok(None);
    };
    let stopped = directory.join(layout::sandbox::STOPPED).exists();
    let state = match record::read::<Ready>(&directory.join(layout::sandbox::READY))? {
        Found::Record(ready) if ready.boot_id == boot_id && !stopped => State::Ready,
        Found::Record(_) => State::NotReady,
        _ if stopped => State::NotReady,
        _ => return Ok(None),
    };
    // Containers that share its PID namespace ended with it.
    let pause_lost =
        meta.config.namespaces.pid == NamespaceMode::Pod && !shim::is_alive(&directory.join(layout::sandbox::PAUSE))?;
    Ok(Some((meta, if pause_lost { State::NotReady } else { state })))
}

/// Ids of the sandboxes that keep their attachment to the network.
pub(crate) fn attached(layout: &Layout) -> anyhow::Result<BTreeSet<String>> {
    let directory = layout.sandboxes();
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?.flatten();
    let keeps =
        |path: &Path| path.join(layout::sandbox::META).exists() && !path.join(layout::sandbox::STOPPED).exists();
    Ok(entries
        .filter(|entry| keeps(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// Success when it is not there.
fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(anyhow!(error)).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
