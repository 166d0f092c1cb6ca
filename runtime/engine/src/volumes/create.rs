//! The making of a volume.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    sync::{Arc, PoisonError},
};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, id};
use berth_shim::record as disk;
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

/// Writes its directory under another name, and renames it when it is complete.
fn write(volumes: &Volumes, volume: &Volume, boot: Option<&str>) -> anyhow::Result<()> {
    let incomplete = volumes.root.join(format!(".{}", id::random_hex(8)));
    let path = volumes.directory(&volume.name);
    let written = (|| {
        // Only root looks into it from the host; who may in a container, its `_data` says.
        fs::DirBuilder::new().mode(0o701).create(&incomplete)?;
        let data = incomplete.join(DATA);
        fs::create_dir(&data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755))?;
        disk::write_new(&incomplete.join(RECORD), volume)?;
        match boot {
            Some(boot) => symlink(boot, incomplete.join(BOOT))?,
            None => disk::sync(&incomplete.join(RECORD))?,
        }
        fs::rename(&incomplete, &path)?;
        boot.map_or_else(|| disk::sync_parent(&path), |_| Ok(()))
    })();
    if written.is_err() {
        // Whichever of the two is there.
        let _ = fs::remove_dir_all(&incomplete);
        let _ = fs::remove_dir_all(&path);
    }
    Ok(written?)
}
