//! The volumes that the image of a container declares.

use std::path::PathBuf;

use berth_node::container::declared_volumes;

use super::record::{Directory, Record};
use crate::{engine::Engine, http::error::Result};

/// A volume, and where it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Made by the first start.
    pub directory: PathBuf,
    /// Absolute, in the container.
    pub target: PathBuf,
}

/// All of them; none of an image that is gone, without which the container cannot start either.
///
/// # Errors
/// 400 for places that an image may not have.
pub(crate) fn declared(engine: &Engine, record: &Record) -> Result<Vec<Volume>> {
    let host = &engine.node.host;
    let Some(image) = host.images.find(&record.image_id)? else { return Ok(Vec::new()) };
    let directory = Directory::of(&host.layout.root, &record.id).volumes();
    let volume = |(index, target): (usize, PathBuf)| Volume {
        directory: directory.join(index.to_string()),
        target,
    };
    Ok(declared_volumes(&image.config)?.into_iter().enumerate().map(volume).collect())
}
