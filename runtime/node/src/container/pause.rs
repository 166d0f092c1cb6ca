//! Pause and unpause: the processes of a container are frozen, and know nothing of it.
//!
//! The kernel remembers it, so that a daemon that starts finds it there. A stop thaws the
//! container first: frozen processes handle no signal. One that is sent waits until they go on.

use std::sync::{MutexGuard, PoisonError};

use berth_base::{
    blocking::{blocking, spawn_blocking},
    error::{Error, Kind, Result},
};

use super::object::Container;
use crate::{
    cgroup::{self, Frozen},
    host::Host,
};

impl Container {
    /// Freezes all of its processes.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs, if it is being stopped, or is paused already.
    pub async fn pause(&self, host: &Host) -> Result<()> {
        // No stop begins meanwhile, which would meet processes that do not go on.
        let life = self.life().await;
        self.check_running()?;
        self.check_not_paused()?;
        if life.stopping.is_some() {
            let what = format!("container {} is being stopped", self.meta.id);
            return Err(Error::precondition(what));
        }
        let (cgroups, path) = (host.cgroups.clone(), self.meta.cgroup.clone());
        let freeze = spawn_blocking(move || cgroups.freeze(&path)).await;
        let frozen = freeze
            .map_err(|error| Error::new(Kind::Internal, error.to_string()))?
            .map_err(|error| match error.downcast_ref() {
                // Its shim has not told yet that it has ended.
                Some(cause) if cgroup::is_of_removed(cause) => {
                    Error::precondition(format!("container {} is not running", self.meta.id))
                }
                _ => Error::from(error).during(format!("pause {}", self.meta.id)),
            })?;
        *self.frozen() = Some(frozen);
        Ok(())
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub async fn unpause(&self) -> Result<()> {
        let _life = self.life().await;
        if !self.is_paused() {
            return Err(Error::precondition(format!("container {} is not paused", self.meta.id)));
        }
        self.thaw()
    }

    pub fn is_paused(&self) -> bool {
        self.pid().is_some() && self.frozen().is_some()
    }

    /// # Errors
    /// `FailedPrecondition`.
    pub(super) fn check_not_paused(&self) -> Result<()> {
        match self.is_paused() {
            true => Err(Error::precondition(format!("container {} is paused", self.meta.id))),
            false => Ok(()),
        }
    }

    /// Finds out whether an earlier daemon has paused it.
    pub fn recover_pause(&self, host: &Host) {
        *self.frozen() = blocking(|| host.cgroups.frozen(&self.meta.cgroup));
    }

    /// Lets its processes go on, if it is paused.
    pub(super) fn thaw(&self) -> Result<()> {
        match self.frozen().take() {
            Some(frozen) => Ok(blocking(|| frozen.thaw())?),
            None => Ok(()),
        }
    }

    fn frozen(&self) -> MutexGuard<'_, Option<Frozen>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
