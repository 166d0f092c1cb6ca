//! A container as the daemon holds it in memory.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::bail;
use berth_base::{
    blocking::blocking,
    clock::now,
    error::{Error, Result},
    id::{ContainerId, SandboxId},
    layout,
};
use berth_image::{Holder, Lease};
use berth_shim::{
    layout as shim_layout,
    record::{self, Exited, Found},
    spec::{Process, Program, Spec},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::{MutexGuard as AsyncMutexGuard, watch},
    time::Instant,
};

use super::{
    config::{Config, Meta},
    disk_usage::Walks,
    state::{self, State},
};
use crate::{
    cgroup::{Frozen, Resources, Sampler},
    events,
    host::Host,
    mount_points,
    shim::{self, Connection},
};

/// One container. Readers get its snapshot without waiting; whoever starts, stops or updates it
/// holds `life`.
#[derive(Debug)]
pub struct Container {
    pub meta: Meta,
    /// Its directory below the root.
    directory: PathBuf,
    snapshot: watch::Sender<Snapshot>,
    /// Held while the container is started, while a stop begins, and while it is updated, so that
    /// these never overlap. A launch may hold it for half a minute, so no reader may wait for it.
    life: tokio::sync::Mutex<Life>,
    measured: Mutex<Measured>,
    /// Its cgroup, while it is paused.
    pub(super) frozen: Mutex<Option<Frozen>>,
    /// Where its events go. Set when the node lists the container.
    pod: OnceLock<events::Pod>,
}

/// What readers see.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub state: State,
    /// In force: those of `meta` until the first update.
    resources: Resources,
    /// The last event of a change of the state.
    published: Option<events::Kind>,
}

/// What belongs to whoever changes the container.
#[derive(Debug)]
pub(super) struct Life {
    pub stopping: Option<Stopping>,
    /// Set by the first attempt to remove it, and never cleared: what is half removed cannot start.
    pub removing: bool,
    /// Keeps its layers from collection until the container is removed.
    layers: Option<Layers>,
}

/// The layers that its root is made of.
#[derive(Debug)]
struct Layers {
    _images: Lease,
    _mount_points: Option<mount_points::Lease>,
}

/// A stop in progress; a later one with a shorter grace moves the deadline.
#[derive(Clone, Debug)]
pub(super) struct Stopping {
    pub deadline: watch::Sender<Instant>,
    /// Why the container cannot be ended, once that has turned out.
    pub failed: watch::Receiver<Option<String>>,
}

/// What earlier measurements leave for later ones.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub sampler: Sampler,
    pub walks: Walks,
}

/// What was found of a container on disk.
#[derive(Debug)]
pub enum Loaded {
    Whole(Arc<Container>),
    /// Its record cannot be read.
    Damaged(Arc<Container>),
}

impl Loaded {
    pub fn container(&self) -> &Arc<Container> {
        match self {
            Self::Whole(container) | Self::Damaged(container) => container,
        }
    }
}

impl Life {
    pub(super) fn is_removed(&self) -> bool {
        self.layers.is_none()
    }
}

impl Container {
    pub(super) fn new(host: &Host, meta: Meta, state: State, images: Lease) -> Self {
        let resources = meta.config.resources.clone();
        let mount_points = meta.mount_points.as_deref().map(|name| host.mount_points.lease(name));
        let layers = Layers { _images: images, _mount_points: mount_points };
        Self {
            directory: host.layout.container(&meta.id),
            meta,
            snapshot: watch::Sender::new(Snapshot { state, resources, published: None }),
            life: tokio::sync::Mutex::new(Life {
                stopping: None,
                removing: false,
                layers: Some(layers),
            }),
            measured: Mutex::default(),
            frozen: Mutex::default(),
            pod: OnceLock::new(),
        }
    }

    /// Reads a container back from disk, before anything is known of its process; `None` if it was
    /// never complete.
    pub fn load(host: &Host, id: &ContainerId) -> Option<Loaded> {
        let directory = host.layout.container(id);
        match record::read::<Meta>(&directory.join(layout::container::META)) {
            Ok(Found::Record(meta)) => Some(Loaded::Whole(Arc::new(Self::recorded(host, meta)))),
            // The record is written before the directory gets its final name. Without one, this can
            // only be what an interrupted removal left.
            Ok(Found::Absent) => None,
            // Records are written without fsync, so that a power loss leaves an empty one of a
            // container that was just being created. Its lock is free, so that none of
            // its processes can be running.
            Ok(Found::Damaged) if matches!(shim::is_alive(&directory), Ok(false)) => None,
            Ok(Found::Damaged) => Some(Loaded::Damaged(Self::damaged(host, id, "is damaged"))),
            Err(error) => {
                let what = format!("cannot be read: {error}");
                Some(Loaded::Damaged(Self::damaged(host, id, &what)))
            }
        }
    }

    fn recorded(host: &Host, meta: Meta) -> Self {
        let holder = if has_ended(host, &meta.id) { Holder::Dead } else { Holder::Living };
        let (layers, damaged) = host.images.hold(&meta.layers, holder);
        if !damaged.is_empty() {
            tracing::warn!(
                container = %meta.id,
                ?damaged,
                "layers of its image are damaged or gone; `crictl pull {}` restores them",
                meta.config.image
            );
        }
        let why = "berthd has just started and has not reached the container's shim yet".to_owned();
        Self::new(host, meta, State::Unknown { why }, layers)
    }

    /// A stand-in for a container whose record cannot be read, and whose processes may be running.
    /// It is listed so that it can be removed, alone or with its pod.
    fn damaged(host: &Host, id: &ContainerId, what: &str) -> Arc<Self> {
        let directory = host.layout.container(id);
        // The shim's record is another file, and names what a removal needs: the pod and the
        // cgroup.
        let spec = read_spec(&directory);
        let mount_points = spec.as_ref().and_then(mount_points::of_spec);
        let (sandbox, cgroups) = spec.map(|spec| (spec.sandbox, spec.cgroups)).unwrap_or_default();
        let meta = Meta {
            id: id.clone(),
            sandbox: SandboxId::from(sandbox),
            unique_name: format!("damaged container {id}"),
            created_at: now(),
            config: Config { name: "damaged".to_owned(), ..Config::default() },
            image_id: String::new(),
            image_name: String::new(),
            image_ref: String::new(),
            layers: Vec::new(),
            mount_points,
            cgroup: host.cgroups.path_of(&cgroups).unwrap_or_default(),
            device_rules: Vec::new(),
            log_path: None,
            stop_signal: Signal::SIGKILL as i32,
        };
        let why = format!(
            "its {} {what}: remove the container (`crictl rm -f {id}`) or its pod",
            layout::container::META
        );
        tracing::error!(container = %id, "{why}");
        // It is not known which layers it runs on, so none may be deleted while it exists.
        Arc::new(Self::new(host, meta, State::Unknown { why }, host.images.hold_all()))
    }

    pub fn state(&self) -> State {
        self.snapshot.borrow().state.clone()
    }

    pub(super) fn set_state(&self, state: State) {
        self.snapshot.send_modify(|snapshot| snapshot.state = state);
    }

    /// Sets the state and publishes its event as one step, after those that come before it in a life. Whoever sees the state, and publishes what
    /// follows, as a removal does, then comes later; whoever gets the event, and asks for the state,
    /// waits for the lock of it.
    pub(super) fn enter(&self, state: State, kind: events::Kind) {
        self.snapshot.send_modify(|snapshot| {
            let before = std::mem::replace(&mut snapshot.state, state);
            // A program may have ended before its shim could be connected to. Its start is told all
            // the same: the caller of StartContainer hears that it succeeded.
            let has_run = matches!(before, State::Created) && snapshot.state.started().is_some();
            let unseen = has_run.then_some(events::Kind::Started);
            for kind in unseen.into_iter().chain([kind]) {
                // A state may be found a second time: a shim that is killed closes its connection
                // before it gives up its lock, and is taken for one to connect to in between.
                if snapshot.published < Some(kind) {
                    snapshot.published = Some(kind);
                    self.publish(kind);
                }
            }
        });
    }

    /// A receiver that is told of every later change of the state.
    pub(super) fn watch_state(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    /// The resources in force.
    pub fn resources(&self) -> Resources {
        self.snapshot.borrow().resources.clone()
    }

    pub(super) fn set_resources(&self, resources: Resources) {
        self.snapshot.send_modify(|snapshot| snapshot.resources = resources);
    }

    /// The PID of the first process as the host counts, while the container runs.
    pub fn pid(&self) -> Option<u32> {
        match &self.snapshot.borrow().state {
            State::Running { started, .. } => Some(started.pid),
            State::Unknown { .. } | State::Created | State::Exited { .. } => None,
        }
    }

    /// The connection to a running container's shim.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the state when it does not run.
    pub(super) fn running(&self) -> Result<Arc<Connection>> {
        let state = match self.state() {
            State::Running { connection: Some(connection), .. } => return Ok(connection),
            State::Running { connection: None, .. } => {
                "running, but the socket of its shim is gone: exec and attach need it".to_owned()
            }
            State::Unknown { why } => format!("in an unknown state ({why}), not running"),
            State::Created => "created, not running".to_owned(),
            State::Exited { .. } => "exited, not running".to_owned(),
        };
        Err(Error::precondition(format!("container {} is {state}", self.meta.id)))
    }

    /// # Errors
    /// `FailedPrecondition` that names the state when it does not run.
    pub fn check_running(&self) -> Result<()> {
        self.running().map(drop)
    }

    /// The first process, as its shim was told to run it. Reads the disk.
    ///
    /// # Errors
    /// There is none: the spec is damaged, or it is the pause of a pod.
    pub(super) fn first_process(&self) -> anyhow::Result<Process> {
        match read_spec(&self.directory).map(|spec| spec.program) {
            Some(Program::Container(container)) => Ok(container.process),
            Some(Program::Pause) | None => {
                bail!("{} in {} is damaged", shim_layout::SPEC, self.directory.display())
            }
        }
    }

    /// What the shim was told to run, for the verbose status. Reads the disk.
    pub fn spec(&self) -> serde_json::Value {
        let path = self.directory.join(shim_layout::SPEC);
        blocking(|| record::read(&path)).ok().and_then(Found::record).unwrap_or_default()
    }

    pub(super) async fn life(&self) -> AsyncMutexGuard<'_, Life> {
        self.life.lock().await
    }

    pub(super) fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses every start from here on, and waits for one that is under way, so that nothing is
    /// made again of what a removal takes away.
    pub async fn begin_removal(&self) {
        self.life.lock().await.removing = true;
    }

    /// Allows its layers to be deleted, once the container is removed.
    pub async fn release_layers(&self) {
        self.life.lock().await.layers = None;
    }

    /// Sends the container's events where those of its pod go.
    pub fn join_pod(&self, pod: events::Pod) {
        // The node lists a container once, so that this is never set already.
        let _ = self.pod.set(pod);
    }

    /// Publishes an event. A container whose pod is not known, because its record is damaged, has no
    /// events: each of them names the pod.
    pub fn publish(&self, kind: events::Kind) {
        if let Some(pod) = self.pod.get() {
            pod.publish(kind, self.meta.id.as_str());
        }
    }
}

/// Whether a container of an earlier daemon has ended for certain, so that nothing of it is mounted.
fn has_ended(host: &Host, id: &ContainerId) -> bool {
    let directory = host.layout.container(id);
    let is_recorded = || {
        let exited = record::read::<Exited>(&directory.join(shim_layout::EXITED));
        matches!(exited, Ok(Found::Record(_)))
    };
    // A lock that cannot be read says nothing.
    let is_alive = shim::is_alive(&directory).unwrap_or(true);
    !is_alive && (is_recorded() || state::is_of_earlier_boot(&host.layout.container_state(id)))
}

/// What the shim of the container in `directory` was told to run, where that can be read.
pub(super) fn read_spec(directory: &Path) -> Option<Spec> {
    let path = directory.join(shim_layout::SPEC);
    blocking(|| record::read::<Spec>(&path)).ok().and_then(Found::record)
}
