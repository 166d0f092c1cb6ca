//! What a running container uses: the counters of its cgroup, and the bytes that it wrote.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_base::{
    blocking::spawn_blocking,
    clock,
    error::{Error, Result},
    layout::Layout,
};
use berth_shim::layout as shim_layout;

use super::{
    disk_usage::{self, DiskUsage},
    object::Container,
    state::State,
};
use crate::{cgroup::Usage, host::Host};

/// How long a request waits for walks that are due. Where they take longer, it gets the figures of
/// the walks before.
const PATIENCE: Duration = Duration::from_millis(50);

/// One sample of a container.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub usage: Usage,
    /// Nanoseconds of CPU time per second since the sample before, or since the start.
    pub nano_cores: Option<u64>,
    /// Absent until its files were counted once.
    pub disk: Option<DiskUsage>,
}

/// A container with what it uses.
pub type Sample = (Arc<Container>, Stats);

impl Container {
    /// Reads the counters. Blocks for some file reads.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs: its cgroup went with its processes.
    pub fn stats(&self, host: &Host) -> Result<Stats> {
        let ended = || Error::precondition(format!("container {} does not run", self.meta.id));
        let State::Running { started, .. } = self.state() else { return Err(ended()) };
        // It may end between the two lines: its cgroup is then gone.
        let usage = host.cgroups.usage(&self.meta.cgroup).map_err(|_| ended())?;
        let mut measured = self.measured();
        let at = measured.sampler.at();
        let nano_cores = measured.sampler.rate(usage.cpu_nanos, clock::since(started.at));
        Ok(Stats { at, usage, nano_cores, disk: measured.walks.known.clone() })
    }

    /// The ids of its processes, execs included, as the host counts. Blocks for some file reads.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs.
    pub fn processes(&self, host: &Host) -> Result<Vec<u32>> {
        self.check_running()?;
        Ok(host.cgroups.processes(&self.meta.cgroup))
    }

    /// Whether its files are to be counted now. True to one caller only, who then has to `walk`.
    fn begin_walk(&self) -> bool {
        // A container that does not run writes nothing, so that the last figures stay right.
        self.pid().is_some() && self.measured().walks.begin()
    }

    fn walk(&self, layout: &Layout) {
        // Without the lock, for which `stats` would wait: a walk may take minutes.
        let begun = Instant::now();
        let directory = layout.container(&self.meta.id);
        let writable = self.meta.config.writable_layer.as_ref().unwrap_or(&directory);
        let found = disk_usage::of(
            writable.join(shim_layout::UPPER),
            &[writable.join(shim_layout::VOLUMES)],
        );
        self.measured().walks.end(found, begun.elapsed());
    }
}

/// All of `containers` that run; one that ends meanwhile is left out. Blocks.
pub fn all(host: &Host, containers: Vec<Arc<Container>>) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(containers.len());
    for container in containers {
        if let Ok(stats) = container.stats(host) {
            samples.push((container, stats));
        }
    }
    samples
}

/// Counts the files of those containers whose turn it is.
pub async fn refresh(host: &Arc<Host>, containers: &[Arc<Container>]) {
    let is_due = |container: &&Arc<Container>| container.begin_walk();
    let due: Vec<_> = containers.iter().filter(is_due).cloned().collect();
    if due.is_empty() {
        return;
    }
    let host = host.clone();
    let walks = spawn_blocking(move || {
        due.iter().for_each(|container| container.walk(&host.layout));
    });
    // The task is not cancelled by the timeout. Its figures serve the next request, and a failed
    // join would be a panic, which is in the log.
    let _ = tokio::time::timeout(PATIENCE, walks).await;
}
