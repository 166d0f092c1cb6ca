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
    layout::INCOMPLETE,
    observe::METRICS,
};
use futures_util::future::join_all;
use tokio::task::JoinHandle;

use crate::{
    container::{self, Container, Loaded},
    host::Host,
    node::Node,
    sandbox::{self, Sandbox},
    shim,
};

/// How long start-up waits for the pods and containers that it recovers. A healthy container takes
/// a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes the node from what an earlier daemon left.
///
/// # Errors
/// The directory of the sandboxes or of the containers cannot be read. Anything that concerns a
/// single one is logged, and the others are served.
pub async fn recover(host: Arc<Host>) -> anyhow::Result<Arc<Node>> {
    let begun = Instant::now();
    let node = Node::new(host);
    let tasks = blocking(|| read_disk(&node))?;
    // Not earlier: only now do all containers hold their layers, and the others can be deleted.
    node.host.images.collect();
    if let Err(error) = node.host.mount_points.adopt(&node.host.layout) {
        tracing::warn!(%error, "the layers of mount points of earlier daemons cannot be listed");
    }
    node.host.images.make_durable_later();
    if tokio::time::timeout(PATIENCE, join_all(tasks)).await.is_err() {
        tracing::warn!(
            "some containers do not respond yet: they are listed as unknown until they do, and \
             all others are served"
        );
    }
    // After the disk was read: pods that are not listed by now are gone.
    collect_networks(&node);
    METRICS.recovery_seconds.set(begun.elapsed().as_secs_f64());
    tracing::info!(
        sandboxes = node.sandboxes.all().len(),
        containers = node.containers.all().len(),
        images = node.host.images.all().len(),
        ms = begun.elapsed().as_millis() as u64,
        "recovered"
    );
    Ok(node)
}

/// Lists everything that has a record. Connecting to shims, and removing what is incomplete, is
/// done by the tasks that are returned.
fn read_disk(node: &Arc<Node>) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let layout = &node.host.layout;
    let mut tasks = Vec::new();
    let mut containers = Vec::new();
    // Containers are read before sandboxes, because they tell which sandboxes may have processes.
    for name in names(&layout.containers())? {
        let incomplete = name.strip_suffix(INCOMPLETE).and_then(|stem| stem.strip_suffix('.'));
        let id = ContainerId::from(incomplete.unwrap_or(&name).to_owned());
        // A directory with this suffix was never renamed: its CreateContainer did not succeed.
        match incomplete.map_or_else(|| Container::load(&node.host, &id), |_| None) {
            Some(loaded) => containers.push(loaded),
            None => tasks.push(remove_container(node, id)),
        }
    }
    let living = pods_that_live(&node.host, &containers);
    for name in names(&layout.sandboxes())? {
        tasks.extend(load_sandbox(node, SandboxId::from(name), &living));
    }
    for loaded in containers {
        let has_sandbox = node.sandboxes.find(loaded.container().meta.sandbox.as_str()).is_ok();
        match loaded {
            // RemovePodSandbox removes the containers first, so one without a sandbox is what a
            // crash left.
            Loaded::Whole(container) if !has_sandbox => {
                tasks.push(remove_container(node, container.meta.id.clone()))
            }
            Loaded::Whole(container) => {
                node.adopt_container(container.clone());
                tasks.push(reconcile(node, container));
            }
            // Nothing can be reconciled without its record. It waits for its removal.
            Loaded::Damaged(container) => node.adopt_container(container),
        }
    }
    Ok(tasks)
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
    node: &Arc<Node>,
    id: SandboxId,
    living: &BTreeSet<SandboxId>,
) -> Option<JoinHandle<()>> {
    match Sandbox::load(&node.host, &id) {
        Ok(Some(sandbox)) => drop(node.adopt_sandbox(sandbox)),
        Ok(None) if living.contains(&id) => adopt_damaged(node, &id, "its record is damaged"),
        Ok(None) => return Some(remove_sandbox(node, id)),
        Err(error) => adopt_damaged(node, &id, &format!("its record cannot be read: {error:#}")),
    }
    None
}

fn adopt_damaged(node: &Arc<Node>, id: &SandboxId, why: &str) {
    tracing::error!(
        sandbox = %id,
        "{why}: the pod is not ready, and must be removed (`crictl rmp -f {id}`)"
    );
    node.adopt_sandbox(Sandbox::damaged(&node.host, id));
}

fn remove_sandbox(node: &Arc<Node>, id: SandboxId) -> JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move {
        match sandbox::remove(&node.host, &id).await {
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

fn remove_container(node: &Arc<Node>, id: ContainerId) -> JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move {
        match container::remove(&node.host, &id).await {
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
fn reconcile(node: &Arc<Node>, container: Arc<Container>) -> JoinHandle<()> {
    let host = node.host.clone();
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
fn collect_networks(node: &Arc<Node>) {
    let node = node.clone();
    tokio::spawn(async move {
        if let Err(error) =
            node.host.networks.collect(|| sandbox::attached(&node.host.layout)).await
        {
            tracing::warn!(
                "what CNI plugins hold for pods that are gone cannot be freed: {error:#}"
            );
        }
    });
}
