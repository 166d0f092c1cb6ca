//! Pause and unpause.

use berth_base::error::Kind;
use http::StatusCode;
use serde_json::json;

use super::running;
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    http::error::{Failure, Result},
};

/// Freezes the processes of a container.
///
/// # Errors
/// 409 unless it runs, or if it is paused already.
pub(crate) async fn pause(engine: &Engine, container: &Container) -> Result<()> {
    let id = &container.id;
    let not_running = || Failure::conflict(format!("container {id} is not running"));
    match container.state().phase {
        Phase::Running { .. } => {}
        Phase::Paused { .. } => {
            return Err(Failure::conflict(format!("Container {id} is already paused")));
        }
        Phase::Restarting => {
            let why = format!("Container {id} is restarting, wait until the container is running");
            return Err(Failure::conflict(why));
        }
        _ => return Err(not_running()),
    }
    let run = running(engine, container).ok_or_else(not_running)?;
    run.pause(&engine.node.host).await.map_err(|error| match error.kind {
        Kind::FailedPrecondition => Failure::conflict(error.message),
        _ => Failure::from(error),
    })?;
    // Unless it has ended meanwhile.
    container.enter(|state| {
        if let Phase::Running { pid } = state.phase {
            state.phase = Phase::Paused { pid };
            if let Some(health) = &mut state.last.health {
                health.suspend();
            }
        }
    });
    engine.publish(container, "pause", json!({}));
    Ok(())
}

/// Lets the processes of a container go on.
///
/// # Errors
/// 500 unless it is paused, as dockerd has it.
pub(crate) async fn unpause(engine: &Engine, container: &Container) -> Result<()> {
    let run = running(engine, container).filter(|_| container.state().is_paused());
    let Some(run) = run else {
        let why = format!("Container {} is not paused", container.id);
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why));
    };
    run.unpause().await?;
    container.enter(|state| {
        if let Phase::Paused { pid } = state.phase {
            state.phase = Phase::Running { pid };
        }
    });
    engine.publish(container, "unpause", json!({}));
    Ok(())
}
