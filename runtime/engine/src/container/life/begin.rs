//! The beginning of a run: its network, its sandbox, its container. What cannot begin leaves nothing.

use std::{sync::Arc, time::Duration};

use berth_base::{
    blocking::blocking,
    clock::now,
    error::Error,
    id::{ContainerId, SandboxId},
    observe::{self, step_blocking, steps::docker_start},
};
use berth_node::container as node;
use http::StatusCode;
use serde_json::json;
use tokio::sync::OwnedRwLockWriteGuard;

use super::attach::join;
use crate::{
    container::{
        not_started::NotStarted,
        object::Container,
        run,
        state::{Last, Phase},
        users,
    },
    engine::Engine,
    health::{Health, Probe},
    http::error::{Failure, Result},
    network::{names, plan},
};

/// How long a start waits for clients that copy files of the container.
const COPYING: Duration = Duration::from_secs(10);

/// The exit code of a start that failed before there was a program.
const NO_CODE: i32 = 128;

/// A start that failed, with the exit code that inspect shows then.
struct Failed {
    code: i32,
    failure: Failure,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { code: NO_CODE, failure }
    }
}

impl Failed {
    fn new(container: &Container, error: &Error) -> Self {
        match NotStarted::of(&container.record().path, error) {
            Some(NotStarted { exit_code, why }) => Self {
                code: exit_code,
                failure: Failure::bad_request(format!(
                    "failed to create task for container: failed to create shim task: OCI runtime \
                     create failed: runc create failed: unable to start container process: error \
                     during container init: {why}"
                )),
            },
            None => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let text = users::not_found(error).unwrap_or_else(|| error.message.clone());
                Failure::new(status, text).into()
            }
        }
    }
}

/// Begins a run, and changes the state together with that. The caller holds `life`, and supervises
/// the run.
///
/// # Errors
/// As dockerd: 400 for a program that is not there, 500, 409.
pub(super) async fn begin(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    change: impl Fn(&mut Last),
) -> Result<Arc<node::Container>> {
    match make(engine, container, &change).await {
        Ok(run) => Ok(run),
        Err(Failed { code, failure }) => {
            undo(engine, container).await;
            names::update(engine, container);
            engine.publish_networks(container, "disconnect");
            container.take_waiting();
            container.change_last(|last| {
                change(last);
                last.running = false;
                // As with dockerd, the code of the run before stays where this one has none.
                if code != NO_CODE || last.exit_code == 0 {
                    last.exit_code = code;
                }
                last.error.clone_from(&failure.message);
            })?;
            Err(failure)
        }
    }
}

/// Makes the sandbox and the container of a run, starts it, and records and publishes that.
async fn make(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    change: impl Fn(&mut Last),
) -> Result<Arc<node::Container>, Failed> {
    observe::before(docker_start::MAKE).map_err(Failure::from)?;
    let _files = reserve_files(container).await?;
    let record = container.record();
    if record.is_lost {
        return Err(Failure::conflict(record.why_lost()).into());
    }
    let layout = &engine.node.host.layout;
    run::check_joins(engine, &record.host_config)?;
    blocking(|| {
        run::check_drivers(&engine.node.host, &record.host_config)?;
        run::prepare(&record)
    })?;
    let mut plan = plan::plan(engine, container)?;
    let mut sandbox = run::sandbox(&engine.node.host, &record);
    plan.apply(&record, &mut sandbox);
    let waiting = container.take_waiting();
    let mut config = run::container(layout, &record, !waiting.is_empty())?;
    config.security.namespaces.network = sandbox.namespaces.network;
    config.env.append(&mut plan.env);
    let failed = |error: Error| Failed::new(container, &error);
    let id = SandboxId::from(container.id.clone());
    engine.node.run_sandbox_as(id, sandbox).await.map_err(|error| {
        plan::refused(engine, container, &error.message).map_or_else(|| failed(error), Failed::from)
    })?;
    // Before the program begins, so that it finds others, and is found, from its first instruction.
    step_blocking(docker_start::NAMES, || -> Result<()> {
        names::update(engine, container);
        Ok(())
    })?;
    let id = ContainerId::from(container.id.clone());
    engine.node.create_container_as(id, &container.id, config).await.map_err(failed)?;
    names::serve(engine, container).await;
    engine.node.start_container(&container.id).await.map_err(failed)?;
    let run = engine.node.containers.find(&container.id).map_err(failed)?;
    for streams in waiting {
        // One that has ended meanwhile has given its output to the first that joined.
        if let Err(error) = join(&run, &streams).await {
            tracing::debug!(container = container.id, "join a client: {error:#}");
        }
    }
    step_blocking(docker_start::BEGUN, || began(engine, container, &run, change))
        .map_err(Failure::from)?;
    Ok(run)
}

/// Waits until nobody has the files of the container mounted, and keeps it so: an overlay cannot be
/// mounted twice.
///
/// # Errors
/// 409 if somebody has them for long. A client that does not read must not keep others from
/// removing the container.
async fn reserve_files(container: &Container) -> Result<OwnedRwLockWriteGuard<()>> {
    let free = container.files.clone().write_owned();
    tokio::time::timeout(COPYING, free).await.map_err(|_| {
        let id = &container.id;
        Failure::conflict(format!("container {id} cannot start while its files are being copied"))
    })
}

/// Records and publishes that a run has begun.
fn began(
    engine: &Engine,
    container: &Container,
    run: &node::Container,
    change: impl Fn(&mut Last),
) -> anyhow::Result<()> {
    let is_probed = container.record().config.healthcheck.as_ref().and_then(Probe::of).is_some();
    let started_at = run.state().started().map_or_else(now, |started| started.at);
    container.change_last(|last| {
        change(last);
        last.running = true;
        last.started_at = started_at;
        last.error.clear();
        last.oom = false;
        last.exit_code = 0;
        last.health = is_probed.then(|| Health::started(last.health.take()));
    })?;
    container.set_phase(Phase::Running { pid: run.pid().unwrap_or_default() });
    engine.publish_mounts(container);
    engine.publish_networks(container, "connect");
    // One without a bridge is on its network from now on.
    names::update(engine, container);
    engine.publish(container, "start", json!({}));
    Ok(())
}

/// Takes down what a run was made of.
pub(crate) async fn undo(engine: &Engine, container: &Container) {
    if let Err(error) = engine.node.remove_sandbox(&container.id).await {
        tracing::warn!(
            container = container.id,
            "what its run was made of cannot be removed yet: {error}"
        );
    }
    engine.ports.release(&container.id);
}
