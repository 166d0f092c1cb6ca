//! Operations in progress, which a retry joins instead of running them a second time.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tracing::Instrument;

use crate::error::{Error, Kind, Result};

type Flight<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Operations in progress, by key. Each runs in a task of its own, and goes on when its caller goes
/// away. A caller that comes with the key of one that runs waits for the same result.
#[derive(Clone)]
pub struct SingleFlight<K, T: Clone> {
    running: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K, T: Clone> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T: Clone> fmt::Debug for SingleFlight<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the operation of `key` that runs, or starts `operation`.
    ///
    /// # Errors
    /// Those of the operation; `Internal` if it panicked.
    pub async fn join<F>(&self, key: K, operation: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        // The lock covers the lookup and the insertion, so that of two callers only one starts it.
        // It is not held while the operation runs.
        let flight = {
            let mut running = self.lock();
            if let Some(flight) = running.get(&key) {
                flight.clone()
            } else {
                let flights = self.clone();
                let own_key = key.clone();
                let task = async move {
                    let result = operation.await;
                    // By the task and not by a caller, since all callers may be gone by now. A call
                    // that comes from here on starts anew.
                    flights.lock().remove(&own_key);
                    result
                };
                // It stays in the trace of the caller that asked first.
                let task = tokio::spawn(task.in_current_span());
                let flight = task
                    .map(|joined| {
                        joined.unwrap_or_else(|error| {
                            Err(Error::new(
                                Kind::Internal,
                                format!("the operation panicked, as the log says: {error}"),
                            ))
                        })
                    })
                    .boxed()
                    .shared();
                running.insert(key, flight.clone());
                flight
            }
        };
        flight.await
    }

    /// Waits for the operation of `key`, if one runs.
    pub async fn wait(&self, key: K) {
        let flight = self.lock().get(&key).cloned();
        if let Some(flight) = flight {
            // Its result is its callers' business.
            let _ = flight.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_retry_joins_the_running_operation_and_a_later_call_starts_anew() {
        let flights = SingleFlight::<&str, u32>::default();
        let (release, wait) = tokio::sync::oneshot::channel();
        let first = tokio::spawn({
            let flights = flights.clone();
            async move {
                flights
                    .join("a", async move { wait.await.map_err(|_| Error::invalid("dropped")) })
                    .await
            }
        });
        while flights.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join("a", async { Ok(2) }).await }
        });
        tokio::task::yield_now().await;
        release.send(1).unwrap();
        assert_eq!((first.await.unwrap().unwrap(), second.await.unwrap().unwrap()), (1, 1));
        assert_eq!(flights.join("a", async { Ok(3) }).await.unwrap(), 3);
    }
}
