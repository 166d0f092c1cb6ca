//! How much a container wrote: over its image, and into the volumes that the image declares.
//!
//! The kernel does not count it (project quotas would, where a filesystem has them), so the files are walked: beside the requests that
//! ask, and the more seldom the longer it takes.

use std::{
    mem::MaybeUninit,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_shim::layout as shim_layout;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat},
    path::Arg,
};

use super::{Container, State};
use crate::{clock::now, layout::Layout, machine::Machine};

/// A layer that changes is walked again after so long,
const AGAIN: Duration = Duration::from_secs(10);
/// one that does not ever later, up to what the kubelet takes for volumes,
const AT_REST: Duration = Duration::from_secs(60);
/// and any after so many times as long as its last walk took: one layer costs at most a hundredth of a core.
const SHARE: u32 = 100;
/// How long a request waits for walks that are due; without them it has the figures of the last ones.
const PATIENCE: Duration = Duration::from_millis(50);
/// How deep a tree is counted: every level holds a descriptor.
const MAX_DEPTH: usize = 128;

#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub path: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
}

/// What earlier walks left for later ones.
#[derive(Debug, Default)]
pub(super) struct Walks {
    known: Option<Layer>,
    /// When the next one is due, and how long after the last that is.
    due: Option<Instant>,
    pause: Duration,
    under_way: bool,
}

/// Walks through the layers that are due.
pub(crate) async fn refresh(machine: &Arc<Machine>, containers: &[Arc<Container>]) {
    let due: Vec<_> = containers.iter().filter(|container| container.begin_walk()).cloned().collect();
    if due.is_empty() {
        return;
    }
    let machine = machine.clone();
    let walks = tokio::task::spawn_blocking(move || due.iter().for_each(|container| container.walk(&machine.layout)));
    // Later ones go on by themselves.
    let _ = tokio::time::timeout(PATIENCE, walks).await;
}

impl Container {
    fn walks(&self) -> MutexGuard<'_, Walks> {
        let walks: &Mutex<Walks> = &self.walks;
        walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As of the last walk.
    pub(crate) fn known_layer(&self) -> Option<Layer> {
        self.walks().known.clone()
    }

    /// Whether a walk is due, which the caller then does.
    fn begin_walk(&self) -> bool {
        let mut walks = self.walks();
        let due = !walks.under_way && walks.due.is_none_or(|due| due <= Instant::now());
        walks.under_way |= due && matches!(self.state(), State::Running { .. });
        due && walks.under_way
    }

    fn walk(&self, layout: &Layout) {
        let (begun, directory) = (Instant::now(), layout.container(&self.meta.id));
        let mut layer = Layer { at: now(), path: directory.join(shim_layout::UPPER), bytes: 0, inodes: 0 };
        for part in [shim_layout::UPPER, shim_layout::VOLUMES] {
            walk(CWD, directory.join(part), 0, &mut layer);
        }
        let mut walks = self.walks();
        let usage = |layer: &Layer| (layer.bytes, layer.inodes);
        let is_at_rest = walks.known.as_ref().map(usage) == Some(usage(&layer));
        let pause = pause(walks.pause, is_at_rest, begun.elapsed());
        *walks = Walks { known: Some(layer), due: Some(Instant::now() + pause), pause, under_way: false };
    }
}

/// Until the next walk, after one that took so long.
fn pause(last: Duration, is_at_rest: bool, took: Duration) -> Duration {
    let pause = if is_at_rest { (last * 2).min(AT_REST) } else { AGAIN };
    pause.max(took * SHARE)
}

/// Counts blocks, not lengths: sparse files take what they take. By descriptor, because the container may put links where
/// directories were; what vanishes on the way is not counted.
fn walk(at: impl AsFd, name: impl Arg, depth: usize, layer: &mut Layer) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = openat(at, name, flags, Mode::empty()) else { return };
    let Ok(own) = fstat(&directory) else { return };
    count(&own, layer);
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        match entry.file_type() {
            _ if name == c"." || name == c".." => {}
            FileType::Directory if depth < MAX_DEPTH => walk(&directory, name, depth + 1, layer),
            _ => {
                if let Ok(found) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    count(&found, layer);
                }
            }
        }
    }
}

fn count(found: &Stat, layer: &mut Layer) {
    let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    // Each name of a file has its share.
    #[allow(clippy::useless_conversion, reason = "32 bits on other processors")]
    let names = if is_directory { 1 } else { u64::from(found.st_nlink).max(1) };
    layer.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512 / names;
    layer.inodes += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_or_is_large_is_walked_more_seldom() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(2));
        let seconds = |last, is_at_rest, took| pause(Duration::from_secs(last), is_at_rest, took).as_secs();
        assert_eq!((seconds(0, false, quick), seconds(10, true, quick), seconds(20, true, quick)), (10, 20, 40));
        assert_eq!((seconds(40, true, quick), seconds(60, true, quick), seconds(60, false, quick)), (60, 60, 10));
        assert_eq!((seconds(10, true, slow), seconds(200, true, slow), seconds(200, true, quick)), (200, 200, 60));
    }
}
