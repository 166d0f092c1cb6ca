//! A container: what was asked for, what the disk and its shim say of it, and the verbs.

mod actor;
mod create;
mod devices;
mod exec;
mod layer;
mod mounts;
mod oci;
mod remove;
mod seccomp;
mod security;
mod spec;
mod state;
mod stats;

use std::{
    collections::BTreeMap,
    mem::Discriminant,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use berth_shim::{
    layout as shim_layout,
    protocol::Call,
    record::{self, End, Exited, Found, Started},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(crate) use create::create;
pub(crate) use devices::Device;
pub(crate) use exec::Output;
pub(crate) use layer::{Layer, refresh as refresh_layers};
pub(crate) use mounts::OPTIONS as MOUNT_OPTIONS;
pub(crate) use remove::remove;
pub(crate) use stats::{Look, Stats, all as all_stats};

use crate::{
    apparmor::Profile,
    cgroup::{DeviceRule, Devices, Resources, Sampler},
    error::{Error, Result},
    events,
    id::{ContainerId, SandboxId},
    image::Lease,
    layout,
    machine::Machine,
    sandbox::{NamespaceModes, UserMapping},
    selinux,
    shim::Connection,
};
use actor::Stopping;
use state::Findings;
pub(crate) use state::Verdict;

/// What was asked for (`ContainerConfig`); checked, and kept as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub name: String,
    pub attempt: u32,
    /// An id or a name.
    pub image: String,
    pub user_specified_image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// `vendor/class=name`.
    pub cdi_devices: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's log directory.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// A Linux signal number.
    pub stop_signal: Option<i32>,
    pub resources: Resources,
    pub security: Security,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub source: MountSource,
    pub container_path: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: berth_shim::spec::Propagation,
    pub selinux_relabel: bool,
    /// Show owners through the pod's user namespace, by this mapping.
    pub mapping: Option<UserMapping>,
    /// Checked: `noexec` and its like (KEP 5855). The later of two that contradict each other counts.
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    Host(PathBuf),
    /// Files of an image (KEP 4639).
    Image {
        image: String,
        sub_path: PathBuf,
        /// What it was, once the container is created.
        image_ref: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Security {
    pub privileged: bool,
    pub namespaces: NamespaceModes,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub ambient_capabilities: Vec<String>,
    pub run_as_user: Option<i64>,
    pub run_as_username: String,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    /// KEP 3619 `Strict`: no memberships from the image's /etc/group.
    pub strict_groups: bool,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub seccomp: Seccomp,
    pub apparmor: Profile,
    #[serde(default)]
    pub selinux: selinux::Options,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A file of this machine, in OCI's JSON.
    Localhost(PathBuf),
}

/// `meta.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    /// Unique name.
    pub unique_name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub config: Config,
    /// Digest of the image's config.
    pub image_id: String,
    /// What the kubelet knows it by: a digest of its repository, else the id.
    pub image_ref: String,
    /// Of its image and of those that it mounts: kept from deletion for as long as the container exists.
    pub layers: Vec<String>,
    pub cgroup: String,
    /// For `config.devices`, as they were resolved.
    pub device_rules: Vec<DeviceRule>,
    pub log_path: Option<PathBuf>,
    /// The effective one; the image may be gone when it is needed.
    pub stop_signal: i32,
}

impl Meta {
    fn devices(&self) -> Devices {
        match self.config.security.privileged {
            true => Devices::All,
            false => Devices::Only(self.device_rules.clone()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running { pid: u32, started_at: i64 },
    Exited { started_at: i64, exited: Exited },
}

#[derive(Debug)]
pub(crate) struct Container {
    pub meta: Meta,
    state: watch::Sender<State>,
    connection: Mutex<Option<Arc<Connection>>>,
    stopping: Mutex<Option<Stopping>>,
    sampler: Mutex<Sampler>,
    walks: Mutex<layer::Walks>,
    /// What lists say of it, encoded, and in which state.
    pub listed: Mutex<Option<(Discriminant<State>, Bytes)>>,
    /// In force: those of `meta` until the first update.
    resources: Mutex<Resources>,
    /// Start, stop's beginning and remove come one after the other.
    busy: tokio::sync::Mutex<()>,
    _layers: Lease,
}

impl Container {
    fn new(meta: Meta, state: State, layers: Lease) -> Self {
        let state = watch::Sender::new(state);
        let resources = Mutex::new(meta.config.resources.clone());
        Self {
            meta,
            state,
            connection: Mutex::default(),
            stopping: Mutex::default(),
            sampler: Mutex::default(),
            walks: Mutex::default(),
            listed: Mutex::default(),
            resources,
            busy: tokio::sync::Mutex::default(),
            _layers: layers,
        }
    }

    /// Reads a container back from disk, before anything is known of its process; `None` if its record is not whole.
    ///
    /// # Errors
    /// The record cannot be read, or its layers are gone.
    pub(crate) fn load(machine: &Machine, id: &ContainerId) -> anyhow::Result<Option<Arc<Self>>> {
        let path = machine.layout.container(id).join(layout::container::META);
        let Found::Record(meta) = record::read::<Meta>(&path).with_context(|| format!("read {}", path.display()))?
        else {
            return Ok(None);
        };
        let layers =
            machine.images.lease(&meta.layers).with_context(|| format!("layers of container {id} are gone"))?;
        Ok(Some(Arc::new(Self::new(meta, State::Created, layers))))
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Why an ended container ended: reason and message, as the kubelet shows them.
    pub(crate) fn reason(exited: &Exited) -> (&'static str, String) {
        match &exited.end {
            End::NotStarted(failure) => ("StartError", format!("cannot start: {failure}")),
            _ if exited.oom => ("OOMKilled", String::new()),
            End::Code(0) => ("Completed", String::new()),
            End::Code(_) | End::Signal(_) => ("Error", String::new()),
            End::ShimLost => ("Error", "the container's shim was killed, and the container with it".to_owned()),
            End::Reboot => ("Error", "the node was rebooted".to_owned()),
        }
    }

    pub(crate) fn user(&self, machine: &Machine) -> Option<record::ResolvedUser> {
        let path = machine.layout.container(&self.meta.id).join(shim_layout::STARTED);
        Some(record::read::<Started>(&path).ok()?.record()?.user)
    }

    /// For the verbose status: what its shim was told.
    pub(crate) fn spec(&self, layout: &layout::Layout) -> serde_json::Value {
        let path = layout.container(&self.meta.id).join(shim_layout::SPEC);
        record::read(&path).ok().and_then(Found::record).unwrap_or_default()
    }

    pub(crate) fn tell(&self, machine: &Machine, kind: events::Kind) {
        machine.changes.tell(kind, &self.meta.sandbox, &self.meta.id);
    }

    fn connection(&self) -> Option<Arc<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_connection(&self, connection: Option<Arc<Connection>>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// The connection to a running container's shim.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the state when it does not run.
    fn running(&self) -> Result<Arc<Connection>> {
        let not_running = |state| Error::precondition(format!("container {} is {state}, not running", self.meta.id));
        match &*self.state.borrow() {
            State::Created => Err(not_running("created")),
            State::Exited { .. } => Err(not_running("exited")),
            State::Running { .. } => self.connection().ok_or_else(|| not_running("about to exit")),
        }
    }

    /// Of the first process, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        match *self.state.borrow() {
            State::Running { pid, .. } => Some(pid),
            State::Created | State::Exited { .. } => None,
        }
    }

    /// # Errors
    /// `FailedPrecondition` that names the state when it does not run.
    pub(crate) fn check_running(&self) -> Result<()> {
        self.running().map(drop)
    }

    pub(crate) fn resources(&self) -> Resources {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// UpdateContainerResources: all of it, or nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for what the kernel refuses.
    pub(crate) async fn update(&self, machine: &Arc<Machine>, change: Resources) -> Result<()> {
        let _busy = self.busy.lock().await;
        let before = self.resources();
        let mut after = before.changed(change);
        if matches!(self.state(), State::Running { .. }) {
            // Of a process that runs already, and not of the cgroup.
            after.oom_score_adj = before.oom_score_adj;
            let updated = machine.update_cgroup(&self.meta.cgroup, &before, after.clone()).await;
            updated.map_err(|error| Error::invalid(format!("{error:#}")))?;
        }
        let mut meta = self.meta.clone();
        meta.config.resources = after.clone();
        let path = machine.layout.container(&self.meta.id).join(layout::container::META);
        record::write(&path, &meta).with_context(|| format!("write {}", path.display()))?;
        *self.resources.lock().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(())
    }

    /// ReopenContainerLog: the log was renamed, later lines go to a new file, which exists when this returns.
    pub(crate) async fn reopen_log(&self) -> Result<()> {
        let connection = self.running()?;
        connection
            .call(Call::ReopenLog, &[])
            .await
            .map(drop)
            .map_err(|error| Error::from(error).during("reopen the log"))
    }
}

/// The state function, applied to a container's directory.
pub(crate) fn look(dir: &Path, boot_id: &str) -> anyhow::Result<(Verdict, Option<Started>)> {
    // The lock first: a shim that leaves in between has written its last file by then.
    let locked = crate::shim::is_alive(dir)?;
    let exited = record::read::<Exited>(&dir.join(shim_layout::EXITED))?.record();
    let started = record::read::<Started>(&dir.join(shim_layout::STARTED))?.record();
    Ok((state::judge(&Findings { exited, locked, started: started.clone(), boot_id }), started))
}
