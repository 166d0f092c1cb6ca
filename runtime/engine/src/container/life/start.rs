//! A start that a user asked for.

use std::sync::Arc;

use super::{begin::begin, remove::remove_if_asked, supervise::supervise};
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    http::error::{Failure, Result},
    restart::Restarts,
};

/// Starts a container. `false` if it runs already, or its policy is about to start it.
///
/// # Errors
/// As dockerd: 400 for a program that is not there, 500, 409 for one that is paused or being removed.
pub(crate) async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<bool> {
    let begun = {
        let _life = container.life.lock().await;
        match container.state().phase {
            Phase::Running { .. } | Phase::Restarting => return Ok(false),
            Phase::Paused { .. } => {
                let why = "cannot start a paused container, try unpause instead";
                return Err(Failure::conflict(why));
            }
            Phase::Removing | Phase::Removed => {
                let why = "container is marked for removal and cannot be started";
                return Err(Failure::conflict(why));
            }
            Phase::Created | Phase::Exited => {}
        }
        // A policy begins anew when a user starts its container.
        let begun = begin(engine, container, |last| last.restarts = Restarts::default()).await;
        if begun.is_err() {
            // Whoever waits for its end waits no longer.
            container.enter(|state| state.ended += 1);
        }
        begun
    };
    match begun {
        Ok(run) => {
            supervise(engine, container, run);
            Ok(true)
        }
        Err(failure) => {
            remove_if_asked(engine, container).await;
            Err(failure)
        }
    }
}
