//! Deletion off every request's way: one rename now, the files later.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{id, layout::Layout};

/// Renames `path` into the trash and deletes it in a thread. Success when it is not there.
///
/// # Errors
/// The rename failed: `path` is still there.
pub(crate) fn discard(layout: &Layout, path: &Path) -> io::Result<()> {
    let target = layout.trash().join(id::random_hex(8));
    match fs::rename(path, &target) {
        Ok(()) => {
            delete(target);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes what an earlier daemon left.
pub(crate) fn empty(layout: &Layout) -> io::Result<()> {
    fs::create_dir_all(layout.trash())?;
    fs::read_dir(layout.trash())?.flatten().for_each(|entry| delete(entry.path()));
    Ok(())
}

fn delete(path: PathBuf) {
    let spawned = std::thread::Builder::new().name("trash".into()).spawn(move || {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "empty the trash");
        }
    });
    // What stays is deleted at the next start.
    if let Err(error) = spawned {
        tracing::warn!(%error, "start a thread");
    }
}
