//! What a running container uses: its cgroup's counters, and the bytes of its writable layer.

use std::{
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use berth_shim::layout as shim_layout;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};

use super::{Container, State, actor::now};
use crate::{
    cgroup,
    error::{Error, Result},
    machine::Machine,
};

/// Rates are over at least so long: shorter ones are noise.
const MIN_SAMPLE: Duration = Duration::from_millis(100);
/// A writable layer is walked again after so long.
const WALK_AGAIN: Duration = Duration::from_secs(10);

/// One look at a container.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub usage: cgroup::Usage,
    /// Nanoseconds of CPU time per second, from the second look on.
    pub nano_cores: Option<u64>,
    pub layer: Layer,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub path: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
}

/// What earlier looks left for later ones.
#[derive(Debug, Default)]
pub(super) struct Samples {
    cpu: Option<(Instant, u64)>,
    rate: Option<u64>,
    layer: Option<(Instant, Layer)>,
}

impl Container {
    /// Reads the counters. Blocks for some file reads, and for a walk through the writable layer when the last is too old.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs: its cgroup went with its processes.
    pub(crate) fn stats(&self, machine: &Machine) -> Result<Stats> {
        if !matches!(self.state(), State::Running { .. }) {
            return Err(Error::precondition(format!("container {} does not run", self.meta.id)));
        }
        let usage = machine.cgroups.usage(&self.meta.cgroup)?;
        let layer = self.layer(&machine.layout.container(&self.meta.id));
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = Instant::now();
        match samples.cpu {
            Some((earlier, cpu)) if taken - earlier >= MIN_SAMPLE => {
                let used = u128::from(usage.cpu_nanos.saturating_sub(cpu));
                let rate = used * 1_000_000_000 / (taken - earlier).as_nanos().max(1);
                samples.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
                samples.cpu = Some((taken, usage.cpu_nanos));
            }
            Some(_) => {}
            None => samples.cpu = Some((taken, usage.cpu_nanos)),
        }
        Ok(Stats { at: now(), usage, nano_cores: samples.rate, layer })
    }

    /// What the container wrote: over its image, and into the volumes that the image declares.
    fn layer(&self, directory: &Path) -> Layer {
        let known = self.samples.lock().unwrap_or_else(PoisonError::into_inner).layer.clone();
        if let Some((_, layer)) = known.filter(|(walked, _)| walked.elapsed() < WALK_AGAIN) {
            return layer;
        }
        // Without the lock: a large layer takes its time.
        let mut layer = Layer { at: now(), path: directory.join(shim_layout::UPPER), bytes: 0, inodes: 0 };
        for part in [shim_layout::UPPER, shim_layout::VOLUMES] {
            walk(CWD, &directory.join(part), 0, &mut layer);
        }
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).layer = Some((Instant::now(), layer.clone()));
        layer
    }
}

/// How deep a tree is counted: every level holds a descriptor.
const MAX_DEPTH: usize = 128;

/// Counts blocks, not lengths: sparse files take what they take. By descriptor, because the container may put links where
/// directories were; what vanishes on the way is not counted.
fn walk(at: impl AsFd, name: &Path, depth: usize, layer: &mut Layer) {
    let Ok(found) = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
    layer.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
    layer.inodes += 1;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory || depth == MAX_DEPTH {
        return;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = openat(&at, name, flags, Mode::empty()) else { return };
    for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            walk(&directory, Path::new(name), depth + 1, layer);
        }
    }
}

/// All of `containers` that run, read in a thread for blocking work; one that ends meanwhile is left out.
pub(crate) async fn all(machine: &Arc<Machine>, containers: Vec<Arc<Container>>) -> Vec<(Arc<Container>, Stats)> {
    let machine = machine.clone();
    let look = move || {
        let stats = |container: Arc<Container>| container.stats(&machine).ok().map(|stats| (container, stats));
        containers.into_iter().filter_map(stats).collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}
