//! The making of a volume.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::Path,
    sync::{Arc, PoisonError},
};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, id};
use berth_shim::record as disk;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Map;

use super::{BOOT, DATA, RECORD, Volume, Volumes};
use crate::engine::Engine;

/// What a volume is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub name: String,
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether it goes with this boot.
    pub is_of_boot: bool,
}

impl Engine {
    /// The volume of this name, which is made if there is none. Once this has returned, no power loss
    /// takes it away, unless it goes with the boot.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub(crate) fn make_volume(&self, wanted: Wanted) -> anyhow::Result<Arc<Volume>> {
        let volumes = &self.volumes;
        let _changing = volumes.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(volume) = volumes.find(&wanted.name) {
            return Ok(volume);
        }
        let is_of_boot = wanted.is_of_boot.then_some(self.node.host.boot_id.as_str());
        let volume = Volume { name: wanted.name, created_at: now(), labels: wanted.labels };
        blocking(|| write(volumes, &volume, is_of_boot))
            .with_context(|| format!("make volume {}", volume.name))?;
        let volume = Arc::new(volume);
        volumes.insert(volume.clone());
        self.publish_volume(&volume.name, "create", Map::new());
        Ok(volume)
    }
}

/// Writes its directory under another name, and renames it when it is complete. What is there already
/// under its own name, and is no volume, is somebody's, and stays.
fn write(volumes: &Volumes, volume: &Volume, boot: Option<&str>) -> anyhow::Result<()> {
    let incomplete = volumes.root.join(format!(".{}", id::random_hex(8)));
    let path = volumes.directory(&volume.name);
    let written = write_files(&incomplete, volume, boot).and_then(|()| {
        renameat_with(CWD, &incomplete, CWD, &path, RenameFlags::NOREPLACE).map_err(Into::into)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&incomplete);
        return Ok(written?);
    }
    if boot.is_none()
        && let Err(error) = disk::sync_parent(&path)
    {
        // It is refused, and must not be there after the next start.
        let _ = fs::remove_dir_all(&path);
        return Err(error.into());
    }
    Ok(())
}

fn write_files(directory: &Path, volume: &Volume, boot: Option<&str>) -> io::Result<()> {
    // Only root looks into it from the host; who may in a container, its `_data` says.
    fs::DirBuilder::new().mode(0o701).create(directory)?;
    let data = directory.join(DATA);
    fs::create_dir(&data)?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755))?;
    disk::write_new(&directory.join(RECORD), volume)?;
    match boot {
        Some(boot) => symlink(boot, directory.join(BOOT)),
        None => disk::sync(&directory.join(RECORD)),
    }
}
