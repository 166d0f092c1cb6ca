//! Stop and kill.

use std::{sync::Arc, time::Duration};

use berth_base::error::Kind;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{pause::unpause, running};
use crate::{
    container::{
        object::Container,
        run,
        state::{Phase, State},
    },
    engine::Engine,
    http::error::{Failure, Result},
    restart,
};

/// How long a stop waits beyond the grace: for the kernel, and for the network to be taken down.
const LEAVING: Duration = Duration::from_secs(10);
/// The grace of a container that names none, in seconds.
const GRACE: i64 = 10;
const SIGKILL: i32 = Signal::SIGKILL as i32;

/// Stops a container: `signal`, or its own, and SIGKILL after `grace` seconds; negative for never.
/// `false` if it does not run.
///
/// # Errors
/// 500 if the kernel cannot end it.
pub(crate) async fn stop(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal: Option<i32>,
    grace: Option<i64>,
) -> Result<bool> {
    if !container.state().is_active() {
        return Ok(false);
    }
    container.change_last(|last| {
        last.restarts.is_stopped_by_hand = true;
        last.restarts.is_cancelled = true;
    })?;
    let grace = grace.or(container.record().config.stop_timeout).unwrap_or(GRACE);
    let grace =
        u64::try_from(grace).map_or(Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs);
    while container.state().is_active() {
        if give_up_restart(container).await {
            engine.publish(container, "stop", json!({}));
        } else if container.state().is_running() {
            stop_run(engine, container, signal, grace).await?;
        }
    }
    Ok(true)
}

/// Stops the run that is under way.
async fn stop_run(
    engine: &Engine,
    container: &Container,
    signal: Option<i32>,
    grace: Duration,
) -> Result<()> {
    container.enter(|state| state.stopping = state.is_running());
    if let Some(run) = running(engine, container) {
        let own = run.meta.stop_signal;
        publish_signal(engine, container, signal.unwrap_or(own));
        go_on(engine, container).await;
        match signal.filter(|signal| *signal != own) {
            Some(signal) => {
                let _ = run.kill(signal).await;
                let _ = tokio::time::timeout(grace, run.ended()).await;
            }
            None => {
                // The node kills it when the grace is over; that it did is told before.
                let stopping = engine.node.stop_container(&container.id, grace);
                let _ = tokio::time::timeout(grace, stopping).await;
            }
        }
        if run.pid().is_some() {
            publish_signal(engine, container, SIGKILL);
        }
        engine.node.stop_container(&container.id, Duration::ZERO).await?;
    }
    if wait(container, |state| !state.is_running()).await {
        return Ok(());
    }
    container.enter(|state| state.stopping = false);
    let what = "its network or mounts cannot be taken down: see berthd's log";
    Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, what))
}

/// Ends the wait for a restart. Whether there was one: it may have begun already, and is over then.
async fn give_up_restart(container: &Container) -> bool {
    if container.state().phase != Phase::Restarting {
        return false;
    }
    let _life = container.life.lock().await;
    container.stop_restarting()
}

/// Sends a signal to the first process.
///
/// # Errors
/// 409 if it does not run.
pub(crate) async fn kill(engine: &Engine, container: &Container, signal: i32) -> Result<()> {
    if !container.state().is_active() {
        return Err(Failure::conflict(format!("container {} is not running", container.id)));
    }
    let is_end = restart::ends_restarts(signal, run::stop_signal(&container.record()));
    container.change_last(|last| {
        last.restarts.is_stopped_by_hand = true;
        last.restarts.is_cancelled |= is_end;
    })?;
    if give_up_restart(container).await {
        return Ok(());
    }
    if is_end {
        go_on(engine, container).await;
    }
    if let Some(run) = running(engine, container)
        && let Err(error) = run.kill(signal).await
        // It has just ended, and nobody knows of it yet.
        && error.kind != Kind::FailedPrecondition
    {
        return Err(error.into());
    }
    publish_signal(engine, container, signal);
    if signal == SIGKILL {
        wait(container, |state| !state.is_running()).await;
        // Its policy may have decided before it knew of this.
        give_up_restart(container).await;
    }
    Ok(())
}

fn publish_signal(engine: &Engine, container: &Container, signal: i32) {
    engine.publish(container, "kill", json!({ "signal": signal.to_string() }));
}

/// Frozen processes handle no signal.
async fn go_on(engine: &Engine, container: &Container) {
    if container.state().is_paused()
        && let Err(failure) = unpause(engine, container).await
    {
        tracing::debug!(container = container.id, "unpause it: {}", failure.message);
    }
}

/// Waits for a state, and whether it came.
async fn wait(container: &Container, is_there: impl FnMut(&State) -> bool) -> bool {
    let mut state = container.watch();
    tokio::time::timeout(LEAVING, state.wait_for(is_there)).await.is_ok()
}
