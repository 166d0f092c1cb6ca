//! The end of volumes.

use std::sync::PoisonError;

use berth_base::{blocking::blocking, trash};
use berth_shim::record as disk;
use serde_json::Map;

use super::registry::Kept;
use crate::{
    engine::Engine,
    http::error::{Failure, Result},
};

/// Removes a volume with all that is in it. Once this has returned, no power loss brings it back.
///
/// # Errors
/// 404 if there is none, 409 while a container uses it; the disk's, which leave it as it was.
pub(crate) fn remove(engine: &Engine, name: &str) -> Result<()> {
    let volumes = &engine.volumes;
    let _changing = volumes.changing.lock().unwrap_or_else(PoisonError::into_inner);
    let volume = volumes.take(name).map_err(|kept| match kept {
        Kept::Unknown => Failure::not_found(format!("get {name}: no such volume")),
        Kept::Used(users) => {
            Failure::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", ")))
        }
    })?;
    let path = volumes.directory(name);
    if let Err(error) = blocking(|| trash::discard(&engine.node.host.layout, &path)) {
        volumes.insert(volume);
        return Err(anyhow::Error::from(error).context(format!("remove volume {name}")).into());
    }
    if let Err(error) = blocking(|| disk::sync_parent(&path)) {
        tracing::warn!(volume = name, "a power loss may bring it back: {error}");
    }
    engine.publish_volume(name, "destroy", Map::new());
    Ok(())
}

/// Removes those of these volumes that nobody uses: nobody has named them, and what they were made
/// for is gone.
pub(crate) fn discard_unnamed<'a>(engine: &Engine, names: impl IntoIterator<Item = &'a str>) {
    for name in names {
        if engine.volumes.users(name) == 0
            && engine.volumes.find(name).is_some()
            && let Err(failure) = remove(engine, name)
        {
            tracing::warn!(volume = name, "it stays: {}", failure.message);
        }
    }
}

/// Removes those that were made for containers which went with their boot.
pub(crate) fn discard_of_earlier_boots(engine: &Engine) {
    let names = engine.volumes.of_earlier_boots(&engine.node.host.boot_id);
    discard_unnamed(engine, names.iter().map(String::as_str));
}
