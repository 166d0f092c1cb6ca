//! Objects by id, prefix and name, and operations in progress that a retry joins.
//!
//! Reads take a std mutex for as long as a map lookup lasts: no list waits for anything that touches a disk.

use std::{
    collections::{BTreeMap, HashMap},
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

/// Objects of one kind. An object has an id and a name that is unique for as long as it exists.
#[derive(Debug)]
pub(crate) struct Index<T> {
    /// What the objects are called in errors.
    noun: &'static str,
    maps: Mutex<Maps<T>>,
}

#[derive(Debug)]
struct Maps<T> {
    by_id: BTreeMap<String, Arc<T>>,
    id_by_name: HashMap<String, String>,
}

impl<T> Index<T> {
    pub(crate) fn new(noun: &'static str) -> Self {
        Self { noun, maps: Mutex::new(Maps { by_id: BTreeMap::new(), id_by_name: HashMap::new() }) }
    }

    fn maps(&self) -> MutexGuard<'_, Maps<T>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `AlreadyExists` with the id that has the name.
    pub(crate) fn check_free(&self, name: &str) -> Result<()> {
        match self.maps().id_by_name.get(name) {
            Some(id) => Err(Error::new(Kind::AlreadyExists, format!("{} {name} exists with id {id}", self.noun))),
            None => Ok(()),
        }
    }

    pub(crate) fn insert(&self, id: &str, name: &str, object: Arc<T>) {
        let mut maps = self.maps();
        maps.by_id.insert(id.to_owned(), object);
        maps.id_by_name.insert(name.to_owned(), id.to_owned());
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut maps = self.maps();
        maps.by_id.remove(id);
        maps.id_by_name.retain(|_, of| of != id);
    }

    /// By id or by a prefix that only one id has.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` for a prefix of several.
    pub(crate) fn find(&self, prefix: &str) -> Result<Arc<T>> {
        let maps = self.maps();
        let mut matching = maps.by_id.range(prefix.to_owned()..).take_while(|(id, _)| id.starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some((id, object)), other) if !prefix.is_empty() && (other.is_none() || id == prefix) => {
                Ok(object.clone())
            }
            (Some(_), Some(_)) if !prefix.is_empty() => {
                Err(Error::invalid(format!("{prefix} is the start of several {} ids", self.noun)))
            }
            _ => Err(Error::not_found(format!("no {} {prefix:?}", self.noun))),
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.maps().by_id.values().cloned().collect()
    }
}

type Flight<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Operations in progress by key. Each runs in a task of its own; a caller that goes away changes nothing, a caller that comes
/// again with the same key waits for the same answer.
#[derive(Clone)]
pub(crate) struct Flights<K, T: Clone> {
    running: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the operation of `key`, or starts `operation`.
    pub(crate) async fn join<F>(&self, key: K, operation: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let flight = {
            let mut running = self.lock();
            if let Some(flight) = running.get(&key) {
                flight.clone()
            } else {
                let (flights, own) = (self.clone(), key.clone());
                let task = async move {
                    let result = operation.await;
                    flights.lock().remove(&own);
                    result
                };
                // It stays a part of the trace of who asked first.
                let task = tokio::spawn(task.in_current_span());
                let flight = task
                    .map(|joined| {
                        joined.unwrap_or_else(|error| {
                            Err(Error::new(Kind::Internal, format!("operation ended early: {error}")))
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

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_id_and_unique_prefix() {
        let index = Index::new("thing");
        for id in ["aa11", "aa22", "aa2233"] {
            index.insert(id, &format!("name of {id}"), Arc::new(id));
        }
        for (prefix, found) in [
            ("aa11", Ok("aa11")),
            ("aa1", Ok("aa11")),
            ("aa22", Ok("aa22")),
            ("aa223", Ok("aa2233")),
            ("aa", Err(Kind::InvalidArgument)),
            ("b", Err(Kind::NotFound)),
            ("", Err(Kind::NotFound)),
        ] {
            assert_eq!(index.find(prefix).map(|thing| *thing).map_err(|error| error.kind), found, "{prefix:?}");
        }
        assert_eq!(index.check_free("name of aa11").unwrap_err().kind, Kind::AlreadyExists);
        index.remove("aa11");
        assert!(index.check_free("name of aa11").is_ok());
    }

    #[tokio::test]
    async fn a_retry_joins_the_running_operation_and_a_later_call_starts_anew() {
        let flights = Flights::<&str, u32>::default();
        let (release, wait) = tokio::sync::oneshot::channel();
        let first = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join("a", async move { wait.await.map_err(|_| Error::invalid("dropped")) }).await }
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
