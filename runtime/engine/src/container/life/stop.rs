//! Stop and kill.

use std::{sync::Arc, time::Duration};

use berth_base::error::Kind;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{pause::unpause, running};
use crate::{
    container::{object::Container, run, state::State},
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
        last.manually_stopped = true;
        last.restarts_cancelled = true;
    })?;
    let grace = grace.or(container.record().config.stop_timeout).unwrap_or(GRACE);
    let grace =
        u64::try_from(grace).map_or(Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs);
    let ended = container.state().ended;
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
    let is_over = |state: &State| state.ended > ended || !state.is_running();
    if !wait(container, is_over).await {
        container.enter(|state| state.stopping = false);
        let what = "its network or mounts cannot be taken down: see berthd's log";
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, what));
    }
    // Its policy may have decided before it knew of the stop.
    if container.stop_restarting() {
        engine.publish(container, "stop", json!({}));
    }
    Ok(true)
}

/// Sends a signal to the first process.
///
/// # Errors
/// 409 if it does not run.
pub(crate) async fn kill(engine: &Engine, container: &Container, signal: i32) -> Result<()> {
    let not_running = || {
        let id = &container.id;
        Failure::conflict(format!("container {id} is not running"))
    };
    if !container.state().is_active() {
        return Err(not_running());
    }
    let is_end = restart::ends_restarts(signal, run::stop_signal(&container.record()));
    container.change_last(|last| {
        last.manually_stopped = true;
        last.restarts_cancelled |= is_end;
    })?;
    if container.stop_restarting() {
        return Ok(());
    }
    let run = running(engine, container).ok_or_else(not_running)?;
    if is_end {
        go_on(engine, container).await;
    }
    run.kill(signal).await.map_err(|error| match error.kind {
        Kind::FailedPrecondition => not_running(),
        _ => error.into(),
    })?;
    publish_signal(engine, container, signal);
    if signal == SIGKILL {
        wait(container, |state| !state.is_running()).await;
        container.stop_restarting();
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
