//! What is mounted in a container, for the files of one that does not run.

use std::path::PathBuf;

use berth_image::Lease;
use berth_node::container::MountSource;

use super::overlay::ImageLayers;
use crate::{
    container::{record::Record, run},
    engine::Engine,
    http::error::{Failure, Result},
};

/// A mount.
#[derive(Clone, Debug)]
pub(super) struct Below {
    pub source: Source,
    /// Absolute, in the container.
    pub target: PathBuf,
    pub readonly: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Nothing is mounted if it is not there: the first start makes it.
    Path(PathBuf),
    /// The part of an image at a path, which may be empty.
    Image(ImageLayers, PathBuf),
}

/// All mounts but those in memory, which end with a run; parents before what is below them. The layers
/// of images exist for as long as the leases.
///
/// # Errors
/// 403 for a bind of the daemon's own files, 404 for an image that is not here, 501.
pub(super) fn of(engine: &Engine, record: &Record) -> Result<(Vec<Below>, Vec<Lease>)> {
    let mut leases = Vec::new();
    let mut mounts = Vec::new();
    for mount in run::mounts(&engine.node.host.layout, record)? {
        let source = match mount.source {
            MountSource::Host(path) => Source::Path(path),
            MountSource::Image { image, sub_path, .. } => {
                let (layers, lease) = of_image(engine, &image)?;
                leases.push(lease);
                Source::Image(layers, sub_path)
            }
        };
        mounts.push(Below { source, target: mount.container_path, readonly: mount.readonly });
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok((mounts, leases))
}

fn of_image(engine: &Engine, name: &str) -> Result<(ImageLayers, Lease)> {
    let host = &engine.node.host;
    let missing = || Failure::not_found(format!("No such image: {name}"));
    let image = host.images.find(name)?.ok_or_else(missing)?;
    let lease = host.images.lease(&image.layers).ok_or_else(missing)?;
    Ok((ImageLayers::of(&host.layout, &image.layers), lease))
}
