//! A task for each run: it waits for the end, and does what is to follow.

use std::{sync::Arc, time::Duration};

use berth_base::clock::now;
use berth_node::container as node;

use super::{
    begin::begin,
    complaints::Complaints,
    end::{Seen, end, policy},
    health,
    remove::remove_if_asked,
};
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    restart::Decision,
};

/// Probes a run, waits for its end, and starts, keeps or removes the container then.
pub(crate) fn supervise(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    run: Arc<node::Container>,
) {
    let (engine, container) = (engine.clone(), container.clone());
    tokio::spawn(async move {
        let mut run = run;
        loop {
            let exited = tokio::select! {
                exited = run.ended() => exited,
                never = health::watch(&engine, &container, &run) => never,
            };
            let decision = end(&engine, &container, &exited, Seen::Live).await;
            match follow(&engine, &container, decision).await {
                Some(next) => run = next,
                None => return,
            }
        }
    });
}

/// Does what was decided at the end of a run. Gives the next run if there is one.
async fn follow(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    decision: Decision,
) -> Option<Arc<node::Container>> {
    match decision {
        Decision::After(delay) => again(engine, container, delay).await,
        Decision::Stay => {
            remove_if_asked(engine, container).await;
            None
        }
    }
}

/// Starts a container that is `Restarting` after a delay, unless somebody thinks better of it. A
/// start that fails is an end like others: what it lacks (a port, a disk) may be there later.
pub(super) async fn again(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    mut delay: Duration,
) -> Option<Arc<node::Container>> {
    let mut complaints = Complaints::of(container, "start it again");
    loop {
        let mut state = container.watch();
        let left = state.wait_for(|state| state.phase != Phase::Restarting);
        if tokio::time::timeout(delay, left).await.is_ok() {
            return None;
        }
        let _life = container.life.lock().await;
        if container.state().phase != Phase::Restarting {
            return None;
        }
        if container.state().last.restarts.is_cancelled {
            container.stop_restarting();
            return None;
        }
        match begin(engine, container, |_| {}).await {
            Ok(run) => return Some(run),
            Err(failure) => {
                complaints.hear(failure.message);
                delay = after_failure(container)?;
            }
        }
    }
}

/// How long to wait after a start by the policy has failed. `None` if it is not tried again.
fn after_failure(container: &Container) -> Option<Duration> {
    let mut decision = Decision::Stay;
    let recorded = container.change_last(|last| {
        // It ran for no time at all.
        last.started_at = now();
        last.finished_at = last.started_at;
        decision = last.restarts.after_end(policy(container), last.exit_code, Duration::ZERO);
    });
    if let Err(error) = recorded {
        tracing::error!(container = container.id, "its failure cannot be recorded: {error:#}");
    }
    match decision {
        Decision::After(delay) => Some(delay),
        Decision::Stay => {
            container.stop_restarting();
            None
        }
    }
}
