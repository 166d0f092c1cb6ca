//! Runs: their start, their end, and what follows it.

use std::{sync::Arc, time::Duration};

use berth_base::{
    blocking::blocking,
    clock::now,
    error::Error,
    id::{ContainerId, SandboxId},
    trash,
};
use berth_node::container as node;
use berth_shim::record::{End, Exited};
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    object::{Container, Streams},
    run,
    state::Phase,
};
use crate::{
    engine::Engine,
    http::error::{Failure, Result},
    network::plan,
};

/// How long a stop waits beyond the grace: for the kernel, and for the network to be taken down.
const LEAVING: Duration = Duration::from_secs(10);
/// The grace of a container that names none.
const GRACE: i64 = 10;

/// The node's container of a run.
pub(crate) fn running(engine: &Engine, container: &Container) -> Option<Arc<node::Container>> {
    engine
        .node
        .containers
        .find(&container.id)
        .ok()
        .filter(|run| run.meta.id.as_str() == container.id)
}

/// Starts a container. `false` if it runs already.
///
/// # Errors
/// As dockerd: 404 for a program that is not there, 500, 409 for one that is being removed.
pub(crate) async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<bool> {
    let _life = container.life.lock().await;
    match container.state().phase {
        Phase::Running { .. } => return Ok(false),
        Phase::Removing | Phase::Removed => {
            return Err(Failure::conflict("container is marked for removal and cannot be started"));
        }
        Phase::Created | Phase::Restarting | Phase::Exited => {}
    }
    container.change_last(|last| {
        last.wanted = true;
        last.manually_stopped = false;
    })?;
    match make_run(engine, container).await {
        Ok(run) => {
            began(engine, container, run)?;
            Ok(true)
        }
        Err(failure) => {
            let Failed { code, failure } = failure;
            let text = failure.message.clone();
            undo_run(engine, container).await;
            container.take_waiting();
            container.change_last(|last| {
                last.wanted = false;
                last.exit_code = code;
                last.error.clone_from(&text);
            })?;
            container.enter(|state| state.ended += 1);
            Err(failure)
        }
    }
}

/// A start that failed, with the exit code that inspect shows then.
struct Failed {
    code: i32,
    failure: Failure,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { code: 128, failure }
    }
}

impl Failed {
    fn new(container: &Container, error: &Error) -> Self {
        let (code, text) = run::start_failure(&container.record(), error);
        let status = match code {
            126 | 127 => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { code, failure: Failure::new(status, text) }
    }
}

/// Makes the sandbox and the container of a run, and starts it.
async fn make_run(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
) -> Result<Arc<node::Container>, Failed> {
    let record = container.record();
    let layout = &engine.node.host.layout;
    run::check_joins(engine, &record.host_config)?;
    blocking(|| run::prepare(&record))?;
    let plan = plan::plan(engine, container)?;
    let mut sandbox = run::sandbox(&engine.node.host, &record);
    plan.apply(&record, &mut sandbox);
    let waiting = container.take_waiting();
    let mut config = run::container(layout, &record, !waiting.is_empty())?;
    config.security.namespaces.network = sandbox.namespaces.network;
    config.env.extend(plan.env);
    let failed = |error: Error| Failed::new(container, &error);
    let id = SandboxId::from(container.id.clone());
    engine.node.run_sandbox_as(id, sandbox).await.map_err(|error| {
        plan::refused(engine, container, &error.message).map_or_else(|| failed(error), Failed::from)
    })?;
    engine.publish_network(container, "connect");
    let id = ContainerId::from(container.id.clone());
    engine.node.create_container_as(id, &container.id, config).await.map_err(failed)?;
    engine.node.start_container(&container.id).await.map_err(failed)?;
    let run = engine.node.containers.find(&container.id).map_err(failed)?;
    for streams in waiting {
        // One that has ended meanwhile has given its output to the first that joined.
        if let Err(error) = join(&run, &streams).await {
            tracing::debug!(container = container.id, "join a client: {error:#}");
        }
    }
    Ok(run)
}

/// Joins streams to a run.
async fn join(run: &node::Container, streams: &Streams) -> Result<(), Error> {
    let Streams { stdin, stdout, stderr, .. } = streams;
    let given: Vec<_> = [stdin, stdout, stderr].into_iter().flatten().collect();
    let which = (stdin.is_some(), stdout.is_some(), stderr.is_some());
    run.attach(which, &given).await.map(drop)
}

/// Joins streams to the run that is under way, or else to the next one.
///
/// # Errors
/// The shim of the run does not answer.
pub(crate) async fn attach(engine: &Engine, container: &Container, streams: Streams) -> Result<()> {
    let _life = container.life.lock().await;
    match running(engine, container).filter(|_| container.state().is_running()) {
        Some(run) => Ok(join(&run, &streams).await?),
        None => {
            container.await_run(streams);
            Ok(())
        }
    }
}

/// Publishes that a run has begun, and waits for its end in a task.
fn began(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    run: Arc<node::Container>,
) -> Result<()> {
    let pid = run.pid().unwrap_or_default();
    container.change_last(|last| {
        last.started_at = now();
        last.error.clear();
        last.oom = false;
        last.exit_code = 0;
    })?;
    container.set_phase(Phase::Running { pid });
    engine.publish(container, "start", json!({}));
    watch(engine, container, run);
    Ok(())
}

/// Waits for the end of a run, and finishes it.
pub(crate) fn watch(engine: &Arc<Engine>, container: &Arc<Container>, run: Arc<node::Container>) {
    let (engine, container) = (engine.clone(), container.clone());
    tokio::spawn(async move {
        let exited = run.ended().await;
        finish(&engine, &container, &exited).await;
    });
}

/// Records the end of a run, takes down what it was made of, and does what is to follow.
pub(crate) async fn finish(engine: &Arc<Engine>, container: &Arc<Container>, exited: &Exited) {
    let life = container.life.lock().await;
    let is_removed_then = container.record().host_config.auto_remove;
    let code = match &exited.end {
        End::NotStarted(_) => 128,
        end => end.code(),
    };
    // Before the run's own record goes. Until then the next start finishes this.
    let recorded = container.change_last(|last| {
        last.finished_at = exited.at;
        last.exit_code = code;
        last.oom = exited.oom;
    });
    if let Err(error) = recorded {
        tracing::error!(container = container.id, "its end cannot be recorded: {error:#}");
    }
    undo_run(engine, container).await;
    engine.publish_network(container, "disconnect");
    if let Err(error) = container.change_last(|last| last.wanted = false) {
        tracing::error!(container = container.id, "its end cannot be recorded: {error:#}");
    }
    if exited.oom {
        engine.publish(container, "oom", json!({}));
    }
    let seconds = (exited.at - container.state().last.started_at).max(0) / 1_000_000_000;
    let attributes = json!({ "exitCode": code.to_string(), "execDuration": seconds.to_string() });
    engine.publish(container, "die", attributes);
    container.enter(|state| {
        state.phase = Phase::Exited;
        state.ended += 1;
    });
    drop(life);
    if is_removed_then && let Err(error) = remove(engine, container, true).await {
        tracing::warn!(container = container.id, "remove it after its end: {}", error.message);
    }
}

/// Takes down what a run was made of.
pub(crate) async fn undo_run(engine: &Engine, container: &Container) {
    if let Err(error) = engine.node.remove_sandbox(&container.id).await {
        tracing::warn!(
            container = container.id,
            "what its run was made of cannot be removed yet: {error}"
        );
    }
    engine.ports.release(&container.id);
}

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
    if container.state().phase == Phase::Restarting {
        container.change_last(|last| last.manually_stopped = true)?;
        container.set_phase(Phase::Exited);
        return Ok(true);
    }
    if !container.state().is_running() {
        return Ok(false);
    }
    container.change_last(|last| last.manually_stopped = true)?;
    let grace = grace.or(container.record().config.stop_timeout).unwrap_or(GRACE);
    let grace =
        u64::try_from(grace).map_or(Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs);
    let ended = container.state().ended;
    if let Some(run) = running(engine, container) {
        let first = signal.unwrap_or_else(|| run.meta.stop_signal).to_string();
        engine.publish(container, "kill", json!({ "signal": first }));
        if let Some(signal) = signal {
            let _ = run.kill(signal).await;
            let _ = tokio::time::timeout(grace, run.ended()).await;
            engine.node.stop_container(&container.id, Duration::ZERO).await?;
        } else {
            engine.node.stop_container(&container.id, grace).await?;
        }
    }
    let mut state = container.watch();
    let finished = state.wait_for(|state| state.ended > ended || !state.is_running());
    if tokio::time::timeout(LEAVING, finished).await.is_err() {
        let what = "its network or mounts cannot be taken down: see berthd's log";
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, what));
    }
    engine.publish(container, "stop", json!({}));
    Ok(true)
}

/// Sends a signal to the first process.
///
/// # Errors
/// 409 if it does not run.
pub(crate) async fn kill(engine: &Engine, container: &Container, signal: i32) -> Result<()> {
    let not_running = || {
        let id = &container.id;
        Failure::conflict(format!("cannot kill container: {id}: container {id} is not running"))
    };
    if !container.state().is_running() {
        return Err(not_running());
    }
    let run = running(engine, container).ok_or_else(not_running)?;
    if signal == Signal::SIGKILL as i32 {
        container.change_last(|last| last.manually_stopped = true)?;
    }
    run.kill(signal).await.map_err(|error| match error.kind {
        berth_base::error::Kind::FailedPrecondition => not_running(),
        _ => error.into(),
    })?;
    engine.publish(container, "kill", json!({ "signal": signal.to_string() }));
    if signal == Signal::SIGKILL as i32 {
        let mut state = container.watch();
        let _ = tokio::time::timeout(LEAVING, state.wait_for(|state| !state.is_running())).await;
    }
    Ok(())
}

/// Removes a container with everything that it had.
///
/// # Errors
/// 409 if it runs and is not to be stopped.
pub(crate) async fn remove(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    force: bool,
) -> Result<()> {
    if container.state().is_running() {
        if !force {
            return Err(Failure::conflict(format!(
                "cannot remove container \"/{}\": container is running: stop the container before \
                 removing or force remove",
                container.record().name
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
    if container.state().phase == Phase::Removed {
        return Ok(());
    }
    container.change_last(|last| last.removing = true)?;
    container.set_phase(Phase::Removing);
    discard(engine, container).await?;
    container.set_phase(Phase::Removed);
    engine.publish(container, "destroy", json!({}));
    Ok(())
}

/// The steps of a removal, which the next start takes up again.
pub(crate) async fn discard(engine: &Arc<Engine>, container: &Container) -> Result<()> {
    engine.node.remove_sandbox(&container.id).await?;
    container.take_waiting();
    let layout = &engine.node.host.layout;
    blocking(|| trash::discard(layout, container.directory.path()))
        .map_err(|error| anyhow::Error::new(error).context("remove its directory"))?;
    engine.containers.remove(container);
    engine.node.host.images.collect();
    Ok(())
}
