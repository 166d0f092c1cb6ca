//! The builds that run, by the ids that their clients have given them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<BTreeMap<String, Arc<Notify>>>);

/// A build that can be cancelled for as long as this exists.
#[derive(Debug)]
pub(crate) struct Cancellable<'a> {
    all: &'a Running,
    id: String,
    cancelled: Arc<Notify>,
}

impl Running {
    /// Of builds with the same id, the last one can be cancelled; without an id, none.
    pub(crate) fn begin(&self, id: &str) -> Cancellable<'_> {
        let cancelled = Arc::new(Notify::new());
        if !id.is_empty() {
            self.all().insert(id.to_owned(), cancelled.clone());
        }
        Cancellable { all: self, id: id.to_owned(), cancelled }
    }

    /// Cancels a build. Nothing happens if there is none of this id.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancelled) = self.all().get(id) {
            cancelled.notify_one();
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancellable<'_> {
    pub(crate) async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for Cancellable<'_> {
    fn drop(&mut self) {
        let mut all = self.all.all();
        if all.get(&self.id).is_some_and(|other| Arc::ptr_eq(other, &self.cancelled)) {
            all.remove(&self.id);
        }
    }
}
