//! A pause for as long as something reads what a container writes. It ends with that, whatever ends the
//! daemon: the kernel remembers a pause, and a note in the container's directory remembers whose it is.

use std::{fs, io};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    observe::{step_blocking, steps::docker_commit},
};

use super::pause::{pause, unpause};
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    http::error::Result,
};

/// Does `work` while the container is paused, if it runs. One that is paused already stays so.
///
/// # Errors
/// Those of `work`; the note cannot be written.
pub(crate) async fn pause_during<T>(
    engine: &Engine,
    container: &Container,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    if !matches!(container.state().phase, Phase::Running { .. }) {
        return work.await;
    }
    let note = container.directory.paused();
    step_blocking(docker_commit::PAUSE, || {
        blocking(|| fs::write(&note, "").context("note whose the pause is"))
    })?;
    // It may have ended meanwhile, or somebody else may have paused it.
    if pause(engine, container).await.is_err() {
        forget(container);
        return work.await;
    }
    let done = work.await;
    end_pause(engine, container).await;
    done
}

/// Ends a pause that is noted, by this daemon or by an earlier one.
pub(crate) async fn end_pause(engine: &Engine, container: &Container) {
    if !blocking(|| container.directory.paused().exists()) {
        return;
    }
    if container.state().is_paused()
        && let Err(failure) = unpause(engine, container).await
    {
        tracing::warn!(container = container.id, "it stays paused: {}", failure.message);
    }
    forget(container);
}

fn forget(container: &Container) {
    match blocking(|| fs::remove_file(container.directory.paused())) {
        // The container may have been removed.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(container = container.id, %error, "forget a pause that has ended");
        }
        _ => {}
    }
}
