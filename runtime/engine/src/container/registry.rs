//! The containers by id, by name, and by the beginning of an id.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::object::Container;
use crate::http::error::{Failure, Result};

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: BTreeMap<String, Arc<Container>>,
    /// The id that has a name. A name is taken before its container is made.
    by_name: BTreeMap<String, String>,
}

impl Registry {
    /// Takes a name for a container that is about to be made, or renamed.
    ///
    /// # Errors
    /// 409 if another has it, in dockerd's words.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut inner = self.inner();
        match inner.by_name.get(name) {
            Some(other) => Err(Failure::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \
                 \"{other}\". You have to remove (or rename) that container to be able to reuse \
                 that name."
            ))),
            None => {
                inner.by_name.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    pub(crate) fn release(&self, name: &str) {
        self.inner().by_name.remove(name);
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        let mut inner = self.inner();
        inner.by_name.insert(container.record().name.clone(), container.id.clone());
        inner.by_id.insert(container.id.clone(), container);
    }

    pub(crate) fn remove(&self, container: &Container) {
        let mut inner = self.inner();
        inner.by_id.remove(&container.id);
        inner.by_name.retain(|_, id| *id != container.id);
    }

    /// All of them, the newest first.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.inner().by_id.values().cloned().collect();
        all.sort_by_key(|container| std::cmp::Reverse(container.record().created_at));
        all
    }

    /// Finds one by its id, its name, or a prefix that only its id has.
    ///
    /// # Errors
    /// 404, and 400 for a prefix of several.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<Container>> {
        let inner = self.inner();
        let name = text.strip_prefix('/').unwrap_or(text);
        if let Some(found) = inner
            .by_id
            .get(text)
            .or_else(|| inner.by_name.get(name).and_then(|id| inner.by_id.get(id)))
        {
            return Ok(found.clone());
        }
        let mut matching = inner
            .by_id
            .range(text.to_owned()..)
            .take_while(|(id, _)| !text.is_empty() && id.starts_with(text));
        match (matching.next(), matching.next()) {
            (Some((_, found)), None) => Ok(found.clone()),
            (None, _) => Err(Failure::not_found(format!("No such container: {text}"))),
            (Some(_), Some(_)) => Err(Failure::bad_request(format!(
                "multiple IDs found with provided prefix: {text}"
            ))),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
