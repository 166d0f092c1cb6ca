//! The containers of a build's steps.

use std::sync::{Arc, Mutex, PoisonError};

use super::output::Output;
use crate::{
    container::{life, object::Container},
    engine::Engine,
};

/// Those that are there. What is left of them when the build has ended is to be removed or handed over.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<Vec<Arc<Container>>>);

impl Containers {
    pub(crate) fn add(&self, container: Arc<Container>) {
        self.lock().push(container);
    }

    /// Removes them, and tells so.
    pub(crate) async fn remove(&self, engine: &Arc<Engine>, output: &Output) {
        for container in self.take() {
            let short = &container.id[..12];
            match remove(engine, &container).await {
                Ok(()) => {
                    output.text(format!(" ---> Removed intermediate container {short}\n")).await;
                }
                Err(why) => {
                    let text = format!("Error removing intermediate container {short}: {why}\n");
                    output.text(text).await;
                }
            }
        }
    }

    /// Removes them, whatever comes of that: nobody listens.
    pub(crate) async fn discard(&self, engine: &Arc<Engine>) {
        for container in self.take() {
            if let Err(why) = remove(engine, &container).await {
                tracing::warn!(container = container.id, "of a cancelled build: {why}");
            }
        }
    }

    /// Leaves them to the user.
    pub(crate) fn hand_over(&self) {
        for container in self.take() {
            if let Err(error) = container.hand_over() {
                tracing::warn!(container = container.id, "keep it after its build: {error:#}");
            }
        }
    }

    fn take(&self) -> Vec<Arc<Container>> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Container>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn remove(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<(), String> {
    // Until a start that is under way has come to its end.
    drop(container.life.lock().await);
    let with = life::With { force: true, volumes: true };
    let removed = life::remove(engine, container, &container.id, with).await;
    removed.map_err(|failure| failure.message)
}
