//! The node's objects, and the verbs that span them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tracing::Instrument;

use crate::{
    container::{self, Container, Output},
    error::{Error, Kind, Result},
    events::{self, Change},
    id::{ContainerId, SandboxId},
    index::{Flights, Index},
    machine::Machine,
    sandbox::{self, NamespaceMode, Sandbox},
};

/// What ends something, which a retry joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    Stop,
    Remove,
}

pub(crate) struct Node {
    pub machine: Arc<Machine>,
    pub sandboxes: Index<Sandbox>,
    pub containers: Index<Container>,
    running: Flights<String, Arc<Sandbox>>,
    creating: Flights<String, Arc<Container>>,
    ending: Flights<(Ending, String), ()>,
    /// Removed, until that was told.
    gone: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
}

impl Node {
    pub(crate) fn new(machine: Arc<Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine,
            sandboxes: Index::new("sandbox"),
            containers: Index::new("container"),
            running: Flights::default(),
            creating: Flights::default(),
            ending: Flights::default(),
            gone: Mutex::default(),
        })
    }

    /// RunPodSandbox.
    pub(crate) async fn run_sandbox(self: &Arc<Self>, config: sandbox::Config) -> Result<SandboxId> {
        let (node, name) = (self.clone(), config.unique_name());
        let operation = async move {
            let name = config.unique_name();
            node.sandboxes.check_free(&name)?;
            let id = SandboxId::random();
            match sandbox::run(&node.machine, &id, config).await {
                Ok(sandbox) => {
                    let sandbox = node.adopt_sandbox(sandbox);
                    node.tell(events::Kind::Created, &sandbox);
                    node.tell(events::Kind::Started, &sandbox);
                    Ok(sandbox)
                }
                Err(error) => {
                    // What could not be undone is shown, so that it is stopped and removed again.
                    let leftover = Sandbox::leftover(&node.machine, &id);
                    leftover.into_iter().for_each(|leftover| drop(node.adopt_sandbox(leftover)));
                    Err(error.during(format!("run sandbox {name}")))
                }
            }
        };
        Ok(self.running.join(name, operation).await?.meta.id.clone())
    }

    pub(crate) fn adopt_sandbox(&self, sandbox: Sandbox) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        self.sandboxes.insert(sandbox.meta.id.as_str(), &sandbox.meta.config.unique_name(), sandbox.clone());
        sandbox.watch_pause(&self.machine);
        sandbox
    }

    pub(crate) fn adopt_container(&self, container: Arc<Container>) {
        self.containers.insert(container.meta.id.as_str(), &container.meta.unique_name, container.clone());
    }

    fn tell(&self, kind: events::Kind, sandbox: &Sandbox) {
        self.machine.changes.tell(kind, &sandbox.meta.id, &sandbox.meta.id);
    }

    fn gone(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which sandbox a change is about, though it may have been removed by it.
    pub(crate) fn sandbox_of(&self, change: &Change) -> Option<Arc<Sandbox>> {
        let gone = || self.gone().get(&change.sandbox).cloned();
        self.sandboxes.find(change.sandbox.as_str()).ok().or_else(gone)
    }

    /// After a change was told.
    pub(crate) fn forget(&self, change: &Change) {
        if change.kind == events::Kind::Deleted && change.id == change.sandbox.as_str() {
            self.gone().remove(&change.sandbox);
        }
    }

    pub(crate) fn containers_of(&self, id: &SandboxId) -> Vec<Arc<Container>> {
        self.containers.all().into_iter().filter(|container| container.meta.sandbox == *id).collect()
    }

    /// Runs `operation` unless one of its kind runs for `id` already.
    async fn end<F>(&self, ending: Ending, id: &str, operation: F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.ending.join((ending, id.to_owned()), operation).await
    }

    /// StopPodSandbox: success when there is none.
    pub(crate) async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(sandbox) = known(self.sandboxes.find(id))? else { return Ok(()) };
        let (node, id) = (self.clone(), sandbox.meta.id.clone());
        self.end(Ending::Stop, id.as_str(), async move {
            let _busy = sandbox.busy.lock().await;
            node.stop_locked(&sandbox).await
        })
        .await
    }

    async fn stop_locked(&self, sandbox: &Sandbox) -> Result<()> {
        // From here on nothing starts in it.
        sandbox.mark_stopped(&self.machine)?;
        let containers = self.containers_of(&sandbox.meta.id);
        let stops = containers.iter().map(|container| container.stop(&self.machine, Duration::ZERO));
        join_all(stops).await.into_iter().collect::<Result<()>>()?;
        sandbox::stop(&self.machine, sandbox)
            .await
            .map_err(|error| error.during(format!("stop sandbox {}", sandbox.meta.id)))
    }

    /// RemovePodSandbox, with its containers: success when there is none.
    pub(crate) async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(sandbox) = known(self.sandboxes.find(id))? else { return Ok(()) };
        let (node, id) = (self.clone(), sandbox.meta.id.clone());
        self.end(Ending::Remove, id.as_str(), async move {
            let _busy = sandbox.busy.lock().await;
            let id = &sandbox.meta.id;
            node.stop_locked(&sandbox).await?;
            let containers = node.containers_of(id);
            let removals = containers.iter().map(|container| node.remove_container(container.meta.id.as_str()));
            join_all(removals).await.into_iter().collect::<Result<()>>()?;
            sandbox::remove(&node.machine, id).await.map_err(|error| error.during(format!("remove sandbox {id}")))?;
            node.gone().insert(id.clone(), sandbox.clone());
            node.sandboxes.remove(id.as_str());
            node.tell(events::Kind::Deleted, &sandbox);
            Ok(())
        })
        .await
    }

    /// CreateContainer.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: container::Config,
    ) -> Result<ContainerId> {
        let sandbox = self.sandboxes.find(sandbox)?;
        self.check_target(&sandbox, &config)?;
        let name = format!("{} (attempt {}) of sandbox {}", config.name, config.attempt, sandbox.meta.id);
        let (node, own_name) = (self.clone(), name.clone());
        let operation = async move {
            // A sandbox that is being removed does not get new containers.
            let _busy = sandbox.busy.lock().await;
            node.containers.check_free(&own_name)?;
            let (machine, sandbox, id) = (node.machine.clone(), sandbox.clone(), ContainerId::random());
            let (own, during) = (id.clone(), own_name.clone());
            let make = move || container::create(&machine, &sandbox, &own, own_name, config);
            let made = tokio::task::spawn_blocking(make)
                .await
                .map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
            if made.is_err()
                && let Err(error) = container::remove(&node.machine, &id).await
            {
                // A disk that has just failed; the next start finds what is left.
                tracing::warn!(container = %id, "undo a failed CreateContainer: {error:#}");
            }
            let container = made.map_err(|error| error.during(format!("create container {during}")))?;
            node.adopt_container(container.clone());
            container.tell(&node.machine, events::Kind::Created);
            Ok(container)
        };
        Ok(self.creating.join(name, operation).await?.meta.id.clone())
    }

    fn check_target(&self, sandbox: &Sandbox, config: &container::Config) -> Result<()> {
        let namespaces = &config.security.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(());
        }
        let target =
            self.containers.find(&namespaces.target).map_err(|error| Error::invalid(format!("target_id: {error}")))?;
        match target.state() {
            _ if target.meta.sandbox != sandbox.meta.id => {
                Err(Error::invalid("target_id is a container of another sandbox"))
            }
            container::State::Running { .. } => Ok(()),
            _ => Err(Error::precondition("target_id is a container that does not run")),
        }
    }

    /// StartContainer.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.containers.find(id)?;
        let sandbox = self.sandboxes.find(container.meta.sandbox.as_str())?;
        let namespaces = &container.meta.config.security.namespaces;
        let target =
            (namespaces.pid == NamespaceMode::Target).then(|| self.containers.find(&namespaces.target)).transpose()?;
        let machine = self.machine.clone();
        let start = async move { container.start(&machine, &sandbox, target.as_deref()).await };
        let started = tokio::spawn(start.in_current_span());
        started.await.map_err(|error| Error::new(Kind::Internal, error.to_string()))?
    }

    /// StopContainer: success when there is none.
    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        match known(self.containers.find(id))? {
            Some(container) => container.stop(&self.machine, grace).await,
            None => Ok(()),
        }
    }

    /// RemoveContainer: success when there is none.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(container) = known(self.containers.find(id))? else { return Ok(()) };
        let (node, id) = (self.clone(), container.meta.id.clone());
        self.end(Ending::Remove, id.as_str(), async move {
            let id = &container.meta.id;
            container.stop(&node.machine, Duration::ZERO).await?;
            container::remove(&node.machine, id)
                .await
                .map_err(|error| error.during(format!("remove container {id}")))?;
            node.containers.remove(id.as_str());
            container.tell(&node.machine, events::Kind::Deleted);
            Ok(())
        })
        .await
    }

    /// ExecSync.
    pub(crate) async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Option<Duration>) -> Result<Output> {
        self.containers.find(id)?.exec_sync(&self.machine, command, timeout).await
    }
}

/// Idempotent verbs succeed where there is nothing.
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
