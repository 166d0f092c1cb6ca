//! Images that must stay although nothing may name them: containers that can be started again are made
//! of them at every start.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::digest::Digest;

/// How many uses there are of each image.
#[derive(Clone, Debug, Default)]
pub(super) struct InUse(Arc<Mutex<HashMap<Digest, usize>>>);

/// Keeps an image for as long as it exists.
#[derive(Debug)]
pub struct ImageUse {
    all: InUse,
    id: Digest,
}

impl InUse {
    fn counts(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, id: &Digest) -> ImageUse {
        *self.counts().entry(id.clone()).or_default() += 1;
        ImageUse { all: self.clone(), id: id.clone() }
    }

    pub(super) fn contains(&self, id: &Digest) -> bool {
        self.counts().contains_key(id)
    }
}

impl Drop for ImageUse {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}
