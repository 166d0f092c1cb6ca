//! What a build has on disk while it runs: the context, what it downloads, and the layers in the making.
//! Nothing of it is needed when the build has ended, however that came.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Context;
use berth_base::{blocking::blocking, id, layout::Layout, trash};

/// A directory that is removed with this.
#[derive(Debug)]
pub(crate) struct BuildDirectory {
    layout: Layout,
    path: PathBuf,
    /// How many directories were made in it.
    made: AtomicUsize,
}

fn all(layout: &Layout) -> PathBuf {
    layout.root.join("engine/builds")
}

impl BuildDirectory {
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn make(layout: Layout) -> anyhow::Result<Self> {
        let path = all(&layout).join(id::random_hex(8));
        make(&path)?;
        Ok(Self { layout, path, made: AtomicUsize::new(0) })
    }

    /// Makes a directory in it, under a name that is `kind` and a number.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn part(&self, kind: &str) -> anyhow::Result<PathBuf> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("{kind}-{number}"));
        make(&path)?;
        Ok(path)
    }
}

impl Drop for BuildDirectory {
    fn drop(&mut self) {
        if let Err(error) = blocking(|| trash::discard(&self.layout, &self.path)) {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

fn make(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("make {}", path.display()))
}

/// Removes what builds of an earlier daemon have left.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn discard_left(layout: &Layout) -> anyhow::Result<()> {
    let all = all(layout);
    let entries = match fs::read_dir(&all) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("read {}", all.display()))?,
    };
    for entry in entries.flatten() {
        trash::discard(layout, &entry.path())
            .with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}
