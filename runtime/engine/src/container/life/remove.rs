//! Removal.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    observe::{step, step_blocking, steps::docker_remove},
    trash,
};
use berth_shim::record as disk;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{complaints::Complaints, stop::kill};
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    http::error::{Failure, Result},
};

/// The pauses between attempts to remove what was not asked for again: nothing tells when a mount or
/// a network can be taken down.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Removes a container with everything that it had. `called` is what the client calls it.
///
/// # Errors
/// 409 if it runs and is not to be stopped.
pub(crate) async fn remove(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    called: &str,
    force: bool,
) -> Result<()> {
    let state = container.state();
    if state.is_active() {
        if !force {
            let why = match state.is_paused() {
                true => "is paused and must be unpaused first".to_owned(),
                false => format!(
                    "is {}: stop the container before removing or force remove",
                    state.status()
                ),
            };
            return Err(Failure::conflict(format!(
                "cannot remove container \"{called}\": container {why}"
            )));
        }
        kill(engine, container, Signal::SIGKILL as i32).await.or_else(|failure| {
            match failure.status {
                // It has just ended.
                StatusCode::CONFLICT => Ok(()),
                _ => Err(failure),
            }
        })?;
    }
    let _life = container.life.lock().await;
    if container.is_removed() {
        return Ok(());
    }
    container.set_phase(Phase::Removing);
    if let Err(failure) = discard(engine, container).await {
        // Its records are whole: it is as it was, and its user is told.
        container.enter(|state| state.phase = state.last.phase());
        return Err(failure);
    }
    container.set_phase(Phase::Removed);
    engine.publish(container, "destroy", json!({}));
    Ok(())
}

/// Removes a container that was made with `--rm` and has ended. Where something of it cannot be
/// removed yet, that is tried again in the background: nobody else would ask.
pub(crate) async fn remove_if_asked(engine: &Arc<Engine>, container: &Arc<Container>) {
    if !container.record().host_config.auto_remove {
        return;
    }
    let Err(failure) = remove(engine, container, &container.id, false).await else { return };
    let (engine, container) = (engine.clone(), container.clone());
    tokio::spawn(async move {
        let mut complaints = Complaints::of(&container, "remove it after its end");
        complaints.hear(failure.message);
        let mut delay = FIRST_RETRY;
        // One that has been started again is removed after its next end.
        while !container.state().is_active() {
            tokio::time::sleep(delay).await;
            match remove(&engine, &container, &container.id, false).await {
                Ok(()) => return,
                Err(failure) => complaints.hear(failure.message),
            }
            delay = (delay * 2).min(LONGEST_RETRY);
        }
    });
}

/// The steps of a removal. Until the last one the container is whole.
///
/// # Errors
/// Something of it cannot be removed yet.
async fn discard(engine: &Arc<Engine>, container: &Container) -> Result<()> {
    step(docker_remove::RUN, engine.node.remove_sandbox(&container.id)).await?;
    container.take_waiting();
    step_blocking(docker_remove::DISCARD, || blocking(|| discard_files(engine, container)))?;
    engine.containers.remove(container);
    container.release_image();
    engine.node.host.images.collect();
    Ok(())
}

/// Takes its directory away. Once this has returned, no power loss brings it back.
fn discard_files(engine: &Engine, container: &Container) -> anyhow::Result<()> {
    let path = container.directory.path();
    trash::discard(&engine.node.host.layout, path).context("remove its directory")?;
    if container.record().outlives_boot() {
        disk::sync_parent(path).context("sync the names of containers")?;
    }
    Ok(())
}
