//! Start-up: what is true is on disk or in the kernel. Reads it, connects to the shims that live, removes the half-made.

use std::{fs, path::Path, sync::Arc, time::Instant};

use anyhow::Context;
use futures_util::future::join_all;

use crate::{
    container::{self, Container},
    id::{ContainerId, SandboxId},
    layout::HALF_MADE,
    machine::Machine,
    node::Node,
    sandbox::{self, Sandbox},
    telemetry::METRICS,
};

/// A node as an earlier daemon left it.
pub(crate) async fn recover(machine: Arc<Machine>) -> anyhow::Result<Arc<Node>> {
    let begun = Instant::now();
    let node = Node::new(machine);
    let layout = &node.machine.layout;
    for name in names(&layout.sandboxes())? {
        recover_sandbox(&node, &SandboxId::from(name)).await;
    }
    let containers = names(&layout.containers())?;
    join_all(containers.into_iter().map(|name| recover_container(&node, name))).await;
    // Containers hold their layers by now.
    node.machine.images.collect();
    collect_networks(&node);
    METRICS.recovery_seconds.set(begun.elapsed().as_secs_f64());
    tracing::info!(
        sandboxes = node.sandboxes.all().len(),
        containers = node.containers.all().len(),
        images = node.machine.images.all().len(),
        ms = begun.elapsed().as_millis() as u64,
        "recovered"
    );
    Ok(node)
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// One that cannot be read is no reason for the others not to be served.
async fn recover_sandbox(node: &Node, id: &SandboxId) {
    match Sandbox::load(&node.machine, id) {
        Ok(Some(sandbox)) => drop(node.adopt_sandbox(sandbox)),
        Ok(None) => match sandbox::remove(&node.machine, id).await {
            Ok(()) => tracing::info!(sandbox = %id, "half-made: removed"),
            Err(error) => {
                tracing::warn!(sandbox = %id, %error, "half-made, and cannot be removed yet");
                Sandbox::leftover(&node.machine, id)
                    .into_iter()
                    .for_each(|leftover| drop(node.adopt_sandbox(leftover)));
            }
        },
        Err(error) => tracing::error!(sandbox = %id, "left alone: {error:#}"),
    }
}

async fn recover_container(node: &Arc<Node>, name: String) {
    if let Some(id) = name.strip_suffix(HALF_MADE).and_then(|stem| stem.strip_suffix('.')) {
        let id = ContainerId::from(id.to_owned());
        if let Err(error) = container::remove(&node.machine, &id).await {
            tracing::warn!(container = %id, %error, "half-made, and cannot be removed yet");
        }
        return;
    }
    let id = ContainerId::from(name);
    if let Err(error) = recover_one(node, &id).await {
        tracing::error!(container = %id, "left alone: {error:#}");
    }
}

async fn recover_one(node: &Arc<Node>, id: &ContainerId) -> anyhow::Result<()> {
    let loaded = Container::load(&node.machine, id)?;
    let has_sandbox = |container: &Arc<Container>| node.sandboxes.find(container.meta.sandbox.as_str()).is_ok();
    let Some(container) = loaded.filter(has_sandbox) else {
        container::remove(&node.machine, id).await?;
        tracing::info!(container = %id, "half-made or without a sandbox: removed");
        return Ok(());
    };
    // A reboot took the directory of its socket along.
    fs::create_dir_all(node.machine.layout.container_state(id)).context("make its state directory")?;
    container.settle(&node.machine).await?;
    if matches!(container.state(), container::State::Running { .. }) {
        container.resume_stop(&node.machine);
    }
    node.adopt_container(container);
    Ok(())
}

/// What CNI plugins still hold for pods that are gone is freed; nobody waits for it.
fn collect_networks(node: &Arc<Node>) {
    let node = node.clone();
    tokio::spawn(async move {
        if let Err(error) = node.machine.networks.collect(|| sandbox::attached(&node.machine.layout)).await {
            tracing::warn!("garbage collection of pod networks: {error:#}");
        }
    });
}
