//! What a running container uses: its cgroup's counters, and the bytes that it wrote.

use std::sync::{Arc, PoisonError};

use super::{Container, State, layer::Layer};
use crate::{
    cgroup::Usage,
    error::{Error, Result},
    machine::Machine,
};

/// One look at a container.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub usage: Usage,
    /// Nanoseconds of CPU time per second, from the second look on.
    pub nano_cores: Option<u64>,
    /// Absent until it was walked through once.
    pub layer: Option<Layer>,
}

/// A container with what it uses.
pub(crate) type Look = (Arc<Container>, Stats);

impl Container {
    /// Reads the counters. Blocks for some file reads.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs: its cgroup went with its processes.
    pub(crate) fn stats(&self, machine: &Machine) -> Result<Stats> {
        let ended = || Error::precondition(format!("container {} does not run", self.meta.id));
        if !matches!(self.state(), State::Running { .. }) {
            return Err(ended());
        }
        let usage = machine.cgroups.usage(&self.meta.cgroup).map_err(|_| ended())?;
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, nano_cores) = (sampler.at(), sampler.rate(usage.cpu_nanos));
        Ok(Stats { at, usage, nano_cores, layer: self.known_layer() })
    }
}

/// All of `containers` that run; one that ends meanwhile is left out. Blocks.
pub(crate) fn all(machine: &Machine, containers: Vec<Arc<Container>>) -> Vec<Look> {
    let stats = |container: Arc<Container>| container.stats(machine).ok().map(|stats| (container, stats));
    containers.into_iter().filter_map(stats).collect()
}
