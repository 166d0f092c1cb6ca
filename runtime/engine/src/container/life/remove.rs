//! Removal.

use std::{fs, io, sync::Arc, time::Duration};

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
    container::{object::Container, record::Directory, state::Phase},
    engine::Engine,
    http::error::{Failure, Result},
    network::names,
    volumes,
};

/// The pauses between attempts to remove what was not asked for again: nothing tells when a mount or
/// a network can be taken down.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What a removal is to do besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct With {
    /// Ends it first, if it runs.
    pub force: bool,
    /// Removes its volumes that nobody has named, and nobody else uses.
    pub volumes: bool,
}

/// Removes a container with everything that it had. `called` is what the client calls it.
///
/// # Errors
/// 409 if it runs and is not to be stopped.
pub(crate) async fn remove(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    called: &str,
    with: With,
) -> Result<()> {
    let state = container.state();
    if state.is_active() {
        if !with.force {
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
    if let Err(failure) = discard(engine, container, with.volumes).await {
        // Its records are whole, be they set aside: it is as it was, and its user is told.
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
    let with = With { volumes: true, ..With::default() };
    let Err(failure) = remove(engine, container, &container.id, with).await else { return };
    let (engine, container) = (engine.clone(), container.clone());
    tokio::spawn(async move {
        let mut complaints = Complaints::of(&container, "remove it after its end");
        complaints.hear(failure.message);
        let mut delay = FIRST_RETRY;
        // One that has been started again is removed after its next end.
        while !container.state().is_active() {
            tokio::time::sleep(delay).await;
            match remove(&engine, &container, &container.id, with).await {
                Ok(()) => return,
                Err(failure) => complaints.hear(failure.message),
            }
            delay = (delay * 2).min(LONGEST_RETRY);
        }
    });
}

/// The steps of a removal. Until its directory is taken away or set aside the container is whole; from
/// then on a further attempt, or the next daemon, goes on with it.
///
/// # Errors
/// Something of it cannot be removed yet.
async fn discard(engine: &Arc<Engine>, container: &Container, with_volumes: bool) -> Result<()> {
    step(docker_remove::RUN, engine.node.remove_sandbox(&container.id)).await?;
    names::update(engine, container);
    container.take_waiting();
    let record = container.record();
    let has_begun = blocking(|| container.directory.removing().path().exists());
    let with_volumes = has_begun || (with_volumes && record.unnamed_volumes().next().is_some());
    let directory = match with_volumes {
        // The next daemon goes on with it, if this one does not come to its volumes.
        true => container.directory.removing(),
        false => container.directory.clone(),
    };
    if with_volumes {
        step_blocking(docker_remove::SET_ASIDE, || blocking(|| set_aside(container, &directory)))?;
        engine.volumes.release(&container.id);
        step_blocking(docker_remove::VOLUMES, || {
            blocking(|| volumes::discard_unnamed(engine, record.unnamed_volumes()));
            anyhow::Ok(())
        })?;
    }
    step_blocking(docker_remove::DISCARD, || {
        blocking(|| discard_files(engine, container, &directory))
    })?;
    engine.volumes.release(&container.id);
    engine.containers.remove(container);
    container.release_image();
    engine.node.host.images.collect();
    Ok(())
}

/// Takes its name away. Once this has returned, no power loss brings it back.
fn set_aside(container: &Container, aside: &Directory) -> anyhow::Result<()> {
    match fs::rename(container.directory.path(), aside.path()) {
        // An earlier attempt has done it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.context("set its directory aside"),
    }?;
    sync_names(container)
}

/// Takes its directory away. Once this has returned, no power loss brings it back.
fn discard_files(
    engine: &Engine,
    container: &Container,
    directory: &Directory,
) -> anyhow::Result<()> {
    trash::discard(&engine.node.host.layout, directory.path()).context("remove its directory")?;
    sync_names(container)
}

fn sync_names(container: &Container) -> anyhow::Result<()> {
    match container.record().outlives_boot() {
        true => {
            disk::sync_parent(container.directory.path()).context("sync the names of containers")
        }
        false => Ok(()),
    }
}
