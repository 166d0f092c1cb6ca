//! The node's pods and containers, and every verb on them. The edges call these verbs, and nothing
//! below them.
//!
//! A verb that makes or ends something runs in a task of its own. The future of a gRPC handler is
//! dropped when its client gives up, and a drop in the middle of a verb would leave half of it
//! done.

mod index;

use std::{sync::Arc, time::Duration};

use berth_base::{
    blocking::spawn_blocking,
    error::{Error, Kind, Result},
    id::{ContainerId, SandboxId},
    singleflight::SingleFlight,
};
use berth_shim::exec_request::ExecRequest;
use futures_util::future::join_all;
use tracing::Instrument;

use self::index::Index;
use crate::{
    cgroup::Resources,
    container::{self, Container, Output},
    events::{Events, Kind as EventKind},
    host::Host,
    sandbox::{self, NamespaceMode, Origin, Sandbox, Sizes},
};

/// The verbs that end an object. A retry of the same verb joins the one that runs. A container may
/// have the id of its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    StopSandbox,
    RemoveSandbox,
    RemoveContainer,
}

/// The pods and containers that were made by one API. There are two nodes in the process, over one
/// host: that of Kubernetes and that of the Docker Engine API (`recover::Nodes`).
pub struct Node {
    pub host: Arc<Host>,
    pub sandboxes: Index<Sandbox>,
    pub containers: Index<Container>,
    pub events: Events,
    // The kubelet repeats a request whose response it did not get. One with the same name joins the
    // first, so that no second pod or container is made.
    running: SingleFlight<String, Arc<Sandbox>>,
    creating: SingleFlight<String, Arc<Container>>,
    ending: SingleFlight<(Ending, String), ()>,
}

impl Node {
    pub fn new(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            host,
            sandboxes: Index::new("sandbox"),
            containers: Index::new("container"),
            events: Events::new(),
            running: SingleFlight::default(),
            creating: SingleFlight::default(),
            ending: SingleFlight::default(),
        })
    }

    /// RunPodSandbox. Returns the id of a pod that is ready.
    ///
    /// # Errors
    /// `AlreadyExists` for a pod with the same name, namespace, uid and attempt.
    pub async fn run_sandbox(self: &Arc<Self>, config: sandbox::Config) -> Result<SandboxId> {
        self.run_sandbox_as(SandboxId::random(), config).await
    }

    /// RunPodSandbox with an id of the caller's, which may be that of a sandbox that was removed.
    ///
    /// # Errors
    /// `AlreadyExists` for a pod with the same id, or the same name, namespace, uid and attempt.
    pub async fn run_sandbox_as(
        self: &Arc<Self>,
        id: SandboxId,
        config: sandbox::Config,
    ) -> Result<SandboxId> {
        let name = config.unique_name();
        // It is large, and would be copied into each of the futures around it.
        let operation = Box::pin(self.clone().make_sandbox(id, config));
        Ok(self.running.join(name, operation).await?.meta.id.clone())
    }

    async fn make_sandbox(
        self: Arc<Self>,
        id: SandboxId,
        config: sandbox::Config,
    ) -> Result<Arc<Sandbox>> {
        let name = config.unique_name();
        // What an earlier daemon left incomplete under this id may still be being removed.
        self.ending.wait((Ending::RemoveSandbox, id.to_string())).await;
        // No other task makes one with this name meanwhile: `running` joins them all.
        self.sandboxes.check_free(&name)?;
        self.sandboxes.check_id_free(id.as_str())?;
        match sandbox::run(&self.host, &id, config).await {
            Ok(sandbox) => {
                let sandbox = self.adopt_sandbox(sandbox);
                self.publish(EventKind::Created, &sandbox);
                self.publish(EventKind::Started, &sandbox);
                Ok(sandbox)
            }
            Err(error) => {
                // What could not be undone is listed, so that the kubelet stops and removes it.
                if let Some(incomplete) = Sandbox::incomplete(&self.host, &id) {
                    self.adopt_sandbox(incomplete);
                }
                Err(error.during(format!("run sandbox {name}")))
            }
        }
    }

    /// Lists a sandbox, and watches its pause process, if it has one: the sandbox is not ready once
    /// that has ended.
    pub fn adopt_sandbox(self: &Arc<Self>, sandbox: Sandbox) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        self.sandboxes.insert(
            sandbox.meta.id.as_str(),
            &sandbox.meta.config.unique_name(),
            sandbox.clone(),
        );
        if sandbox.meta.config.namespaces.pid == NamespaceMode::Pod {
            let node = self.clone();
            let sandbox = sandbox.clone();
            tokio::spawn(async move {
                sandbox.broken(&node.host).await;
                node.end_sandbox(&sandbox);
            });
        }
        sandbox
    }

    /// Makes a sandbox not ready, and publishes that once.
    fn end_sandbox(&self, sandbox: &Arc<Sandbox>) {
        sandbox.end(|| self.publish(EventKind::Stopped, sandbox));
    }

    /// Lists a container. Its events go where those of its pod go.
    pub fn adopt_container(&self, container: Arc<Container>) {
        if let Ok(sandbox) = self.sandboxes.find(container.meta.sandbox.as_str()) {
            container.join_pod(self.events.pod(sandbox));
        }
        self.containers.insert(
            container.meta.id.as_str(),
            &container.meta.unique_name,
            container.clone(),
        );
    }

    fn publish(&self, kind: EventKind, sandbox: &Arc<Sandbox>) {
        self.events.pod(sandbox.clone()).publish(kind, sandbox.meta.id.as_str());
    }

    /// The containers of a pod, in any state.
    pub fn containers_of(&self, id: &SandboxId) -> Vec<Arc<Container>> {
        self.containers
            .all()
            .into_iter()
            .filter(|container| container.meta.sandbox == *id)
            .collect()
    }

    /// Runs `operation` in a task, or joins one of the same kind that runs for `id` already.
    async fn end<F>(&self, ending: Ending, id: &str, operation: F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.ending.join((ending, id.to_owned()), operation).await
    }

    /// StopPodSandbox: success when there is none.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(sandbox) = known(self.sandboxes.find(id))? else { return Ok(()) };
        let node = self.clone();
        let id = sandbox.meta.id.clone();
        self.end(Ending::StopSandbox, id.as_str(), async move {
            // Waits for a CreateContainer in this pod, whose container is then stopped below.
            let _busy = sandbox.busy.lock().await;
            node.stop_locked(&sandbox).await
        })
        .await
    }

    /// Stops a sandbox. The caller holds its `busy`.
    async fn stop_locked(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        // Not ready comes first, in memory and on disk: from here on no container is created or
        // started in it, not even by a daemon that starts after a crash.
        self.end_sandbox(sandbox);
        sandbox.mark_stopped(&self.host)?;
        let containers = self.containers_of(&sandbox.meta.id);
        let stops = containers.iter().map(|container| container.stop(&self.host, Duration::ZERO));
        // All of them are stopped before the first error is returned, at the same time: each may
        // take seconds. Only then the namespaces go that they use.
        join_all(stops).await.into_iter().collect::<Result<()>>()?;
        sandbox::stop(&self.host, sandbox)
            .await
            .map_err(|error| error.during(format!("stop sandbox {}", sandbox.meta.id)))
    }

    /// RemovePodSandbox: stops the pod and removes it with its containers. Success when there is
    /// none.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(sandbox) = known(self.sandboxes.find(id))? else { return Ok(()) };
        let node = self.clone();
        let id = sandbox.meta.id.clone();
        self.end(Ending::RemoveSandbox, id.as_str(), async move {
            let _busy = sandbox.busy.lock().await;
            let id = &sandbox.meta.id;
            node.stop_locked(&sandbox).await?;
            let containers = node.containers_of(id);
            let removals = containers
                .iter()
                .map(|container| node.remove_container(container.meta.id.as_str()));
            join_all(removals).await.into_iter().collect::<Result<()>>()?;
            sandbox::remove(&node.host, id)
                .await
                .map_err(|error| error.during(format!("remove sandbox {id}")))?;
            // Unlisted only after its removal, so that a removal that fails can be tried again.
            node.sandboxes.remove(id.as_str());
            node.publish(EventKind::Deleted, &sandbox);
            Ok(())
        })
        .await
    }

    /// Removes what never became a sandbox. Who asks for its id anew waits for that.
    pub(crate) async fn remove_incomplete_sandbox(&self, id: &SandboxId) -> Result<()> {
        let (host, own_id) = (self.host.clone(), id.clone());
        let removal = async move { sandbox::remove(&host, &own_id).await };
        self.end(Ending::RemoveSandbox, id.as_str(), removal).await
    }

    /// As `remove_incomplete_sandbox`.
    pub(crate) async fn remove_incomplete_container(&self, id: &ContainerId) -> Result<()> {
        let (host, own_id) = (self.host.clone(), id.clone());
        let removal = async move { container::remove(&host, &own_id).await };
        self.end(Ending::RemoveContainer, id.as_str(), removal).await
    }

    pub(crate) fn has_sandbox(&self, id: &SandboxId) -> bool {
        self.sandboxes.check_id_free(id.as_str()).is_err()
    }

    /// CreateContainer.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: container::Config,
    ) -> Result<ContainerId> {
        self.create_container_as(ContainerId::random(), sandbox, config).await
    }

    /// CreateContainer with an id of the caller's, which may be that of a container that was
    /// removed, and that of its sandbox.
    ///
    /// # Errors
    /// `AlreadyExists` for a container with the same id.
    pub async fn create_container_as(
        self: &Arc<Self>,
        id: ContainerId,
        sandbox: &str,
        config: container::Config,
    ) -> Result<ContainerId> {
        let sandbox = self.sandboxes.find(sandbox)?;
        self.check_target(&sandbox, &config)?;
        let name =
            format!("{} (attempt {}) of sandbox {}", config.name, config.attempt, sandbox.meta.id);
        let node = self.clone();
        let own_name = name.clone();
        let operation = async move { node.make_container(id, sandbox, own_name, config).await };
        Ok(self.creating.join(name, operation).await?.meta.id.clone())
    }

    async fn make_container(
        self: Arc<Self>,
        id: ContainerId,
        sandbox: Arc<Sandbox>,
        name: String,
        config: container::Config,
    ) -> Result<Arc<Container>> {
        // Held until the container is listed. A removal of the sandbox therefore either finds the
        // container, or has ended before and left a sandbox that is not ready.
        let _busy = sandbox.busy.lock().await;
        self.ending.wait((Ending::RemoveContainer, id.to_string())).await;
        self.containers.check_free(&name)?;
        self.containers.check_id_free(id.as_str())?;
        let host = self.host.clone();
        let pod = sandbox.clone();
        let own_id = id.clone();
        let own_name = name.clone();
        let make = move || container::create(&host, &pod, &own_id, own_name, config);
        let made = spawn_blocking(make)
            .await
            .map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
        match made {
            Ok(container) => {
                self.adopt_container(container.clone());
                container.publish(EventKind::Created);
                Ok(container)
            }
            Err(error) => {
                self.undo_create(&id).await;
                Err(error.during(format!("create container {name}")))
            }
        }
    }

    async fn undo_create(&self, id: &ContainerId) {
        if let Err(error) = container::remove(&self.host, id).await {
            // Probably the disk is what failed. The next start of the daemon finds what is left.
            tracing::warn!(
                container = %id,
                "CreateContainer failed, and what it made cannot be removed yet: {error:#}"
            );
        }
        // Its image may have been removed while the failed container held the layers.
        self.host.images.collect();
    }

    /// Checks the container whose PID namespace a new one is to join (ephemeral containers).
    fn check_target(&self, sandbox: &Sandbox, config: &container::Config) -> Result<()> {
        let namespaces = &config.security.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(());
        }
        let target = self
            .containers
            .find(&namespaces.target)
            .map_err(|error| Error::invalid(format!("target_id: {error}")))?;
        match target.state() {
            // Each container of the engine has a sandbox of its own.
            _ if target.meta.sandbox != sandbox.meta.id
                && sandbox.meta.config.origin == Origin::Kubernetes =>
            {
                Err(Error::invalid("target_id names a container of another sandbox"))
            }
            container::State::Running { .. } => Ok(()),
            _ => Err(Error::precondition("target_id names a container that does not run")),
        }
    }

    /// StartContainer. Returns once the program runs.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.containers.find(id)?;
        let sandbox = self.sandboxes.find(container.meta.sandbox.as_str())?;
        let namespaces = &container.meta.config.security.namespaces;
        let target = (namespaces.pid == NamespaceMode::Target)
            .then(|| self.containers.find(&namespaces.target))
            .transpose()?;
        let host = self.host.clone();
        let start = async move { container.start(&host, &sandbox, target.as_deref()).await };
        // In a task, so that a client that gives up does not end the launch half-way.
        let started = tokio::spawn(start.in_current_span());
        started.await.map_err(|error| Error::new(Kind::Internal, error.to_string()))?
    }

    /// StopContainer: success when there is none.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        match known(self.containers.find(id))? {
            Some(container) => container.stop(&self.host, grace).await,
            None => Ok(()),
        }
    }

    /// RemoveContainer: success when there is none.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(container) = known(self.containers.find(id))? else { return Ok(()) };
        let node = self.clone();
        let id = container.meta.id.clone();
        self.end(Ending::RemoveContainer, id.as_str(), async move {
            let id = &container.meta.id;
            container.begin_removal().await;
            // CRI: a running container is removed by force.
            container.stop(&node.host, Duration::ZERO).await?;
            container::remove(&node.host, id)
                .await
                .map_err(|error| error.during(format!("remove container {id}")))?;
            node.containers.remove(id.as_str());
            // Only when nothing is mounted on them any more.
            container.release_layers().await;
            node.host.images.collect();
            node.host.mount_points.collect(&node.host.layout);
            container.publish(EventKind::Deleted);
            Ok(())
        })
        .await
    }

    /// ExecSync: runs a command in a container, and returns its output and exit code.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<Output> {
        self.containers.find(id)?.exec_sync(ExecRequest::new(command), timeout).await
    }

    /// The container for an Exec or an Attach.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs.
    pub fn running_container(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.containers.find(id)?;
        container.check_running()?;
        Ok(container)
    }

    /// The sandbox for a PortForward.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is ready.
    pub fn ready_sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let sandbox = self.sandboxes.find(id)?;
        match sandbox.state() {
            sandbox::State::Ready => Ok(sandbox),
            sandbox::State::NotReady => {
                Err(Error::precondition(format!("sandbox {} is not ready", sandbox.meta.id)))
            }
        }
    }

    /// UpdatePodSandboxResources.
    pub async fn update_sandbox(&self, id: &str, sizes: Sizes) -> Result<()> {
        self.sandboxes.find(id)?.update(&self.host.layout, sizes).await
    }

    /// UpdateContainerResources.
    pub async fn update_container(&self, id: &str, resources: Resources) -> Result<()> {
        self.containers.find(id)?.update(&self.host, resources).await
    }

    /// ReopenContainerLog.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        self.containers.find(id)?.reopen_log().await
    }
}

/// `None` for what does not exist, where an idempotent verb succeeds.
fn known<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("sandboxes", &self.sandboxes)
            .field("containers", &self.containers)
            .finish_non_exhaustive()
    }
}
