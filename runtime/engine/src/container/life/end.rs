//! The end of a run.

use std::{sync::Arc, time::Duration};

use berth_base::observe::{self, step_blocking, steps::docker_end};
use berth_shim::record::{End, Exited};
use serde_json::json;

use super::begin::undo;
use crate::{
    container::{
        object::Container,
        state::{Last, Phase},
    },
    engine::Engine,
    network::names,
    restart::{Decision, Policy},
};

/// The exit code of a run that was not started.
const NOT_STARTED: i32 = 128;

/// Who sees the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The daemon that it happened to.
    Live,
    /// One that starts, and finds that it has happened.
    Later,
}

/// Records the end of a run, takes down what it was made of, and decides what is to follow.
pub(crate) async fn end(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    exited: &Exited,
    seen: Seen,
) -> Decision {
    let _life = container.life.lock().await;
    let code = match &exited.end {
        End::NotStarted(_) => NOT_STARTED,
        end => end.code(),
    };
    let policy = policy(container);
    let change = |last: &mut Last| {
        last.running = false;
        last.finished_at = exited.at;
        last.exit_code = code;
        last.oom = exited.oom;
        if let Some(health) = &mut last.health {
            health.suspend();
        }
        match seen {
            Seen::Live => last.restarts.after_end(policy, code, uptime(last)),
            Seen::Later => at_daemon_start(policy, last),
        }
    };
    let mut decision = Decision::Stay;
    // Before the run's own record goes: until then, the next daemon does all of this again.
    let recorded =
        step_blocking(docker_end::STATE, || container.change_last(|last| decision = change(last)));
    if let Err(error) = recorded {
        tracing::error!(container = container.id, "its end cannot be recorded: {error:#}");
        container.enter(|state| decision = change(&mut state.last));
    }
    if exited.oom {
        engine.publish(container, "oom", json!({}));
    }
    if let Err(error) = observe::before(docker_end::UNDO) {
        tracing::warn!(container = container.id, "{error}");
    }
    undo(engine, container).await;
    names::update(engine, container);
    engine.publish_networks(container, "disconnect");
    engine.publish_unmounts(container);
    let was_stopping = container.state().stopping;
    // Who hears of the end and looks, as compose does, has to see it.
    container.enter(|state| {
        state.stopping = false;
        match decision {
            Decision::After(_) => state.phase = Phase::Restarting,
            Decision::Stay => {
                state.phase = Phase::Exited;
                state.ended += 1;
            }
        }
    });
    if was_stopping {
        engine.publish(container, "stop", json!({}));
    }
    let seconds = uptime(&container.state().last).as_secs();
    let attributes = json!({ "exitCode": code.to_string(), "execDuration": seconds.to_string() });
    engine.publish(container, "die", attributes);
    decision
}

/// The policy of a container. Those that were refused never came this far.
pub(super) fn policy(container: &Container) -> Policy {
    container.record().host_config.restart_policy.check().unwrap_or_default()
}

/// What a daemon that starts does with a container that does not run.
pub(super) fn at_daemon_start(policy: Policy, last: &Last) -> Decision {
    // Nobody has started one that is new.
    match last.started_at != 0 && policy.at_daemon_start(&last.restarts, last.exit_code) {
        true => Decision::After(Duration::ZERO),
        false => Decision::Stay,
    }
}

fn uptime(last: &Last) -> Duration {
    let nanos = last.finished_at.saturating_sub(last.started_at);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
