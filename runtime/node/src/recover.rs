//! Start-up. The truth is on disk and in the kernel: this reads the disk, connects to the shims
//! that are alive, and removes what is incomplete.
//!
//! None of that may keep the node from serving. The disk is read first, so that every pod and every
//! container is listed. Whatever has not responded after a moment is waited for in the background,
//! while the others are served.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    id::{ContainerId, SandboxId},
    layout::{INCOMPLETE, Layout},
    observe::METRICS,
};
use berth_shim::record;
use futures_util::future::join_all;
use tokio::task::JoinHandle;

use crate::{
    container::{self, Container, Loaded},
    host::Host,
    node::Node,
    sandbox::{self, Origin, Sandbox},
    shim,
};

/// How long start-up waits for the pods and containers that it recovers. A healthy container takes
/// a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// All pods and containers of this machine, by the API that they were made by. Both nodes are of one
/// host: images, cgroups and networks are shared.
#[derive(Clone, Debug)]
pub struct Nodes {
    pub kubernetes: Arc<Node>,
    pub engine: Arc<Node>,
}

impl Nodes {
    fn of(&self, origin: Origin) -> &Arc<Node> {
        match origin {
            Origin::Kubernetes => &self.kubernetes,
            Origin::Engine => &self.engine,
        }
    }

    /// The node that lists this sandbox.
    fn with_sandbox(&self, id: &SandboxId) -> Option<&Arc<Node>> {
        [&self.kubernetes, &self.engine].into_iter().find(|node| node.has_sandbox(id))
    }

    fn adopt_sandbox(&self, sandbox: Sandbox) {
        self.of(sandbox.meta.config.origin).adopt_sandbox(sandbox);
    }
}

/// Makes the nodes from what an earlier daemon left. Layers that no container holds are still there
/// afterwards: the engine has containers that are not in its node.
///
/// # Errors
/// The directory of the sandboxes or of the containers cannot be read. Anything that concerns a
/// single one is logged, and the others are served.
pub async fn recover(host: Arc<Host>) -> anyhow::Result<Nodes> {
    let begun = Instant::now();
    let nodes = Nodes { kubernetes: Node::new(host.clone()), engine: Node::new(host.clone()) };
    // The engine publishes events of its own objects. Those of its runs nobody reads.
    nodes.engine.events.discard();
    let tasks = blocking(|| read_disk(&nodes, &host))?;
    if let Err(error) = host.mount_points.adopt(&host.layout) {
        tracing::warn!(%error, "the layers of mount points of earlier daemons cannot be listed");
    }
    host.images.make_durable_later();
    if tokio::time::timeout(PATIENCE, join_all(tasks)).await.is_err() {
        tracing::warn!(
            "some containers do not respond yet: they are listed as unknown until they do, and \
             all others are served"
        );
    }
    // After the disk was read: pods that are not listed by now are gone.
    collect_networks(&host);
    METRICS.recovery_seconds.set(begun.elapsed().as_secs_f64());
    let Nodes { kubernetes, engine } = &nodes;
    tracing::info!(
        sandboxes = kubernetes.sandboxes.all().len(),
        containers = kubernetes.containers.all().len(),
        engine_containers = engine.containers.all().len(),
        images = host.images.all().len(),
        ms = begun.elapsed().as_millis() as u64,
        "recovered"
    );
    Ok(nodes)
}

/// Lists everything that has a record. Connecting to shims, and removing what is incomplete, is
/// done by the tasks that are returned.
fn read_disk(nodes: &Nodes, host: &Arc<Host>) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let layout = &host.layout;
    let mut tasks = Vec::new();
    let mut containers = Vec::new();
    // Containers are read before sandboxes, because they tell which sandboxes may have processes.
    for name in names(&layout.containers())? {
        let incomplete = name.strip_suffix(INCOMPLETE).and_then(|stem| stem.strip_suffix('.'));
        let id = ContainerId::from(incomplete.unwrap_or(&name).to_owned());
        // A directory with this suffix was never renamed: its CreateContainer did not succeed.
        match incomplete.map_or_else(|| Container::load(host, &id), |_| None) {
            Some(loaded) => containers.push(loaded),
            None => tasks.push(remove_container(nodes, id)),
        }
    }
    let living = pods_that_live(host, &containers);
    for name in names(&layout.sandboxes())? {
        tasks.extend(load_sandbox(nodes, host, SandboxId::from(name), &living));
    }
    for loaded in containers {
        let node = nodes.with_sandbox(&loaded.container().meta.sandbox);
        match (loaded, node) {
            // RemovePodSandbox removes the containers first, so one without a sandbox is what a
            // crash left.
            (Loaded::Whole(container), None) => {
                tasks.push(remove_container(nodes, container.meta.id.clone()))
            }
            (Loaded::Whole(container), Some(node)) => {
                node.adopt_container(container.clone());
                if Arc::ptr_eq(node, &nodes.engine) {
                    container.recover_pause(host);
                }
                tasks.push(reconcile(host, container));
            }
            // Nothing can be reconciled without its record. It waits for its removal.
            (Loaded::Damaged(container), node) => {
                let origin = Origin::of_unrecorded(layout, container.meta.id.as_str());
                node.unwrap_or(nodes.of(origin)).adopt_container(container);
            }
        }
    }
    forget_stops(layout)?;
    Ok(tasks)
}

/// Removes the marks of stopped pods that are gone. A removal that a crash ended may have left one,
/// and an id of the engine comes again: its next run would be taken for one that is stopped.
fn forget_stops(layout: &Layout) -> anyhow::Result<()> {
    for name in names(&layout.all_stopped())? {
        let id = SandboxId::from(name);
        if matches!(layout.sandbox(&id).try_exists(), Ok(false)) {
            let marker = layout.stopped(&id);
            record::remove(&marker).with_context(|| format!("remove {}", marker.display()))?;
        }
    }
    Ok(())
}

/// The names of what is in a directory.
fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The pods of which some container may be running. They are not removed as incomplete, whatever
/// their own record says.
fn pods_that_live(host: &Host, containers: &[Loaded]) -> BTreeSet<SandboxId> {
    containers
        .iter()
        .map(Loaded::container)
        .filter(|container| may_run(host, container))
        .map(|container| container.meta.sandbox.clone())
        .collect()
}

fn may_run(host: &Host, container: &Container) -> bool {
    // A lock that cannot be read says nothing, so the container may be running.
    shim::is_alive(&host.layout.container(&container.meta.id)).unwrap_or(true)
}

/// Lists a sandbox, or removes it if it was never complete. One that cannot be read is logged and
/// listed, and does not keep the others from being served.
fn load_sandbox(
    nodes: &Nodes,
    host: &Arc<Host>,
    id: SandboxId,
    living: &BTreeSet<SandboxId>,
) -> Option<JoinHandle<()>> {
    match Sandbox::load(host, &id) {
        Ok(Some(sandbox)) => nodes.adopt_sandbox(sandbox),
        Ok(None) if living.contains(&id) => {
            adopt_damaged(nodes, host, &id, "its record is damaged")
        }
        Ok(None) => return Some(remove_sandbox(nodes, host, id)),
        Err(error) => {
            adopt_damaged(nodes, host, &id, &format!("its record cannot be read: {error:#}"));
        }
    }
    None
}

fn adopt_damaged(nodes: &Nodes, host: &Host, id: &SandboxId, why: &str) {
    tracing::error!(
        sandbox = %id,
        "{why}: the pod is not ready, and must be removed (`crictl rmp -f {id}`)"
    );
    nodes.adopt_sandbox(Sandbox::damaged(host, id));
}

fn remove_sandbox(nodes: &Nodes, host: &Arc<Host>, id: SandboxId) -> JoinHandle<()> {
    // Read before the record is removed: whose id it is waits for this removal.
    let origin = Sandbox::incomplete(host, &id).map_or_else(
        || Origin::of_unrecorded(&host.layout, id.as_str()),
        |sandbox| sandbox.meta.config.origin,
    );
    let node = nodes.of(origin).clone();
    tokio::spawn(async move {
        match node.remove_incomplete_sandbox(&id).await {
            Ok(()) => tracing::info!(sandbox = %id, "removed an incomplete pod"),
            Err(error) => {
                tracing::warn!(sandbox = %id, %error, "an incomplete pod cannot be removed yet");
                // Listed, so that the kubelet tries it again.
                if let Some(incomplete) = Sandbox::incomplete(&node.host, &id) {
                    node.adopt_sandbox(incomplete);
                }
            }
        }
    })
}

fn remove_container(nodes: &Nodes, id: ContainerId) -> JoinHandle<()> {
    let layout = &nodes.kubernetes.host.layout;
    let node = nodes.of(Origin::of_unrecorded(layout, id.as_str())).clone();
    tokio::spawn(async move {
        match node.remove_incomplete_container(&id).await {
            Ok(()) => {
                tracing::info!(container = %id, "removed an incomplete or orphaned container")
            }
            // The next start finds it again.
            Err(error) => tracing::warn!(
                container = %id,
                %error,
                "an incomplete or orphaned container cannot be removed yet"
            ),
        }
    })
}

/// Finds out what became of a container, and continues a stop that was begun.
fn reconcile(host: &Arc<Host>, container: Arc<Container>) -> JoinHandle<()> {
    let host = host.clone();
    tokio::spawn(async move {
        // A join fails only if the task panicked, and then the panic is in the log.
        let _ = container.reconcile_later(&host).await;
        if matches!(container.state(), container::State::Running { .. }) {
            container.resume_stop(&host).await;
        }
    })
}

/// Frees what CNI plugins still hold for pods that are gone, now and every hour. Nobody waits for
/// it.
fn collect_networks(host: &Arc<Host>) {
    let host = host.clone();
    tokio::spawn(async move {
        if let Err(error) = host.networks.collect(|| sandbox::attached(&host.layout)).await {
            tracing::warn!(
                "what CNI plugins hold for pods that are gone cannot be freed: {error:#}"
            );
        }
    });
}
