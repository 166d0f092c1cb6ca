//! The start of the daemon: the policies of containers that do not run.

use std::{collections::HashMap, sync::Arc};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::{
    end::{at_daemon_start, policy},
    supervise::{again, supervise},
};
use crate::{
    container::{links, object::Container, state::Phase},
    engine::Engine,
    restart::Decision,
};

/// Starts the containers whose policy says so, in the background: a container whose start hangs
/// holds up nobody but those that need it.
pub(crate) fn resume(engine: &Arc<Engine>) {
    let mut tried: HashMap<String, Shared<BoxFuture<'static, ()>>> = HashMap::new();
    // The oldest first: a container can only need one that was there when it was made.
    for container in engine.containers.all().into_iter().rev() {
        let state = container.state();
        match state.phase {
            // Its end was found, and what is to follow decided.
            Phase::Restarting => {}
            Phase::Exited => match at_daemon_start(policy(&container), &state.last) {
                Decision::After(_) => container.set_phase(Phase::Restarting),
                Decision::Stay => continue,
            },
            _ => continue,
        }
        // It counts until the daemon starts, as docker's users know it of `always`.
        if state.last.restarts.is_cancelled
            && let Err(error) = container.change_last(|last| last.restarts.is_cancelled = false)
        {
            tracing::error!(container = container.id, "it stays as it is: {error:#}");
            container.stop_restarting();
            continue;
        }
        let needed: Vec<_> =
            needs(engine, &container).iter().filter_map(|id| tried.get(id).cloned()).collect();
        let id = container.id.clone();
        let (engine, container) = (engine.clone(), container);
        let task = tokio::spawn(async move {
            futures_util::future::join_all(needed).await;
            if let Some(run) = again(&engine, &container, std::time::Duration::ZERO).await {
                supervise(&engine, &container, run);
            }
        });
        tried.insert(id, task.map(drop).boxed().shared());
    }
}

/// The ids of containers that must be up before it.
fn needs(engine: &Engine, container: &Container) -> Vec<String> {
    let record = container.record();
    let host = &record.host_config;
    let modes = [&host.network_mode, &host.ipc_mode, &host.pid_mode];
    let joined = modes.into_iter().filter_map(|mode| mode.strip_prefix("container:"));
    let linked = host.links.iter().flatten().filter_map(|link| Some(links::parse(link).ok()?.0));
    joined
        .chain(linked)
        .filter_map(|name| Some(engine.containers.find(name).ok()?.id.clone()))
        .collect()
}
