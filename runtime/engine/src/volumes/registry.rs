//! The volumes by name, and who uses them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_base::{layout::Layout, trash};
use berth_shim::record::{self as disk, Found};

use super::{BOOT, DATA, RECORD, Volume, is_name};

#[derive(Debug)]
pub(crate) struct Volumes {
    pub(super) root: PathBuf,
    inner: Mutex<Inner>,
    /// Held while one is made or removed, for as long as the disk takes.
    pub(super) changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    by_name: BTreeMap<String, Arc<Volume>>,
    /// The ids of the containers that use a volume.
    users: BTreeMap<String, BTreeSet<String>>,
}

/// Why a volume stays.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Unknown,
    /// By the containers with these ids.
    Used(Vec<String>),
}

impl Volumes {
    /// Reads those of an earlier daemon, and removes what it has left half-made.
    ///
    /// # Errors
    /// Their directory cannot be read.
    pub(crate) fn open(layout: &Layout) -> anyhow::Result<Self> {
        let root = layout.root.join("volumes");
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let mut by_name = BTreeMap::new();
        for entry in fs::read_dir(&root).with_context(|| format!("read {}", root.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                // No volume's name begins like this.
                trash::discard(layout, &path)?;
            } else if is_name(&name) && path.join(DATA).is_dir() {
                by_name.insert(name.clone(), Arc::new(read(&path, name)));
            }
        }
        let inner = Inner { by_name, users: BTreeMap::new() };
        Ok(Self { root, inner: Mutex::new(inner), changing: Mutex::default() })
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.inner().by_name.values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Volume>> {
        self.inner().by_name.get(name).cloned()
    }

    /// How many containers use it.
    pub(crate) fn users(&self, name: &str) -> usize {
        self.inner().users.get(name).map_or(0, BTreeSet::len)
    }

    /// Notes that a container uses a volume, which is not removed until `release`. `None` if there is
    /// none of this name.
    pub(crate) fn hold(&self, name: &str, container: &str) -> Option<Arc<Volume>> {
        let mut inner = self.inner();
        let volume = inner.by_name.get(name)?.clone();
        inner.users.entry(name.to_owned()).or_default().insert(container.to_owned());
        Some(volume)
    }

    /// Ends the use of all volumes by a container.
    pub(crate) fn release(&self, container: &str) {
        self.inner().users.retain(|_, users| {
            users.remove(container);
            !users.is_empty()
        });
    }

    pub(super) fn insert(&self, volume: Arc<Volume>) {
        self.inner().by_name.insert(volume.name.clone(), volume);
    }

    /// Takes one out that nobody uses.
    pub(super) fn take(&self, name: &str) -> Result<Arc<Volume>, Kept> {
        let mut inner = self.inner();
        if let Some(users) = inner.users.get(name) {
            return Err(Kept::Used(users.iter().cloned().collect()));
        }
        inner.by_name.remove(name).ok_or(Kept::Unknown)
    }

    /// Those that went with an earlier boot, unless a container uses them.
    pub(super) fn of_earlier_boots(&self, boot_id: &str) -> Vec<String> {
        let unused = self.all().into_iter().filter(|volume| self.users(&volume.name) == 0);
        let boot = |volume: &Volume| fs::read_link(self.directory(&volume.name).join(BOOT)).ok();
        unused
            .filter(|volume| boot(volume).is_some_and(|boot| boot.as_os_str() != boot_id))
            .map(|volume| volume.name.clone())
            .collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record of a volume. What its user has stored is there whether the record is or not.
fn read(directory: &Path, name: String) -> Volume {
    let path = directory.join(RECORD);
    match disk::read::<Volume>(&path) {
        Ok(Found::Record(volume)) if volume.name == name => volume,
        _ => {
            tracing::warn!(
                volume = name,
                "{} is damaged: the volume is listed without its labels",
                path.display()
            );
            let made = directory.metadata().map_or(0, |metadata| metadata.mtime());
            Volume { name, created_at: made * 1_000_000_000, labels: None }
        }
    }
}
