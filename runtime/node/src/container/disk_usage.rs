//! How much a container wrote: over its image, and into the volumes that the image declares.
//!
//! The kernel does not count that, except with project quotas, which not every filesystem has. So
//! the files are walked, in the background, and the less often the longer a walk takes.

use std::{
    mem::MaybeUninit,
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_base::clock::now;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat},
    path::Arg,
};

/// The pause before files are walked again that changed between the last two walks.
const AGAIN: Duration = Duration::from_secs(10);
/// The longest pause before files are walked again that did not change: the period at which the
/// kubelet measures volumes.
const AT_REST: Duration = Duration::from_secs(60);
/// A pause lasts at least this many times as long as the walk before it, so that a container costs
/// at most one percent of a core.
const SHARE: u32 = 100;
/// How many levels of directories are counted. Each level holds a descriptor open, and a container
/// can make any number of them.
const MAX_DEPTH: usize = 128;

#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The upper directory of the container's overlay.
    pub path: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
}

/// What earlier walks leave for later ones.
#[derive(Debug, Default)]
pub(super) struct Walks {
    pub known: Option<DiskUsage>,
    /// When the next one is due, and how long after the last that is.
    due: Option<Instant>,
    pause: Duration,
    under_way: bool,
}

impl Walks {
    /// Whether a walk is due. Where it is, the caller walks, and calls `end`.
    pub(super) fn begin(&mut self) -> bool {
        let is_due = self.due.is_none_or(|due| due <= Instant::now());
        let begins = is_due && !self.under_way;
        self.under_way |= begins;
        begins
    }

    pub(super) fn end(&mut self, found: DiskUsage, took: Duration) {
        let is_at_rest = self
            .known
            .as_ref()
            .is_some_and(|known| (known.bytes, known.inodes) == (found.bytes, found.inodes));
        self.pause = pause(self.pause, is_at_rest, took);
        self.due = Some(Instant::now() + self.pause);
        self.known = Some(found);
        self.under_way = false;
    }
}

/// Counts the files below `path`, and those below `more`.
pub(super) fn of(path: PathBuf, more: &[PathBuf]) -> DiskUsage {
    let mut found = DiskUsage { at: now(), path: path.clone(), bytes: 0, inodes: 0 };
    walk(CWD, &path, 0, &mut found);
    for path in more {
        walk(CWD, path, 0, &mut found);
    }
    found
}

/// How long to wait after a walk that took `took`.
fn pause(last: Duration, is_at_rest: bool, took: Duration) -> Duration {
    let pause = if is_at_rest { (last * 2).min(AT_REST) } else { AGAIN };
    pause.max(took * SHARE)
}

/// Adds up what is below the directory `name`. Blocks are counted, not lengths, so that the holes
/// of sparse files count for nothing.
///
/// It goes down by descriptors, because the container may replace a directory by a symbolic link at
/// any moment. A file that disappears meanwhile is not counted, and that is no error.
fn walk(at: impl AsFd, name: impl Arg, depth: usize, found: &mut DiskUsage) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = openat(at, name, flags, Mode::empty()) else { return };
    let Ok(own) = fstat(&directory) else { return };
    count(&own, found);
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        match entry.file_type() {
            _ if name == c"." || name == c".." => {}
            FileType::Directory if depth < MAX_DEPTH => walk(&directory, name, depth + 1, found),
            _ => {
                if let Ok(file) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    count(&file, found);
                }
            }
        }
    }
}

fn count(file: &Stat, found: &mut DiskUsage) {
    let is_directory = FileType::from_raw_mode(file.st_mode) == FileType::Directory;
    // A file with several names (hard links) is met once for each: each name counts for its share.
    // st_blocks is in units of 512 bytes on every filesystem (stat(3type)).
    #[allow(clippy::useless_conversion, reason = "32 bits on other processors")]
    let names = if is_directory { 1 } else { u64::from(file.st_nlink).max(1) };
    found.bytes += u64::try_from(file.st_blocks).unwrap_or(0) * 512 / names;
    found.inodes += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_or_is_large_is_walked_more_seldom() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(2));
        let seconds =
            |last, is_at_rest, took| pause(Duration::from_secs(last), is_at_rest, took).as_secs();
        assert_eq!(
            (seconds(0, false, quick), seconds(10, true, quick), seconds(20, true, quick)),
            (10, 20, 40)
        );
        assert_eq!(
            (seconds(40, true, quick), seconds(60, true, quick), seconds(60, false, quick)),
            (60, 60, 10)
        );
        assert_eq!(
            (seconds(10, true, slow), seconds(200, true, slow), seconds(200, true, quick)),
            (200, 200, 60)
        );
    }
}
