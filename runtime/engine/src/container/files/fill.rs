//! The files of an image, for the volumes of a container that is made.

use berth_base::layout::Layout;

use super::{
    apart::{apart, own_mounts},
    overlay::ImageLayers,
};
use crate::{
    container::record::Record,
    volumes::{Filling, fill},
};

/// Fills the volumes that are empty with what the image of the container has in their places. Blocks.
///
/// # Errors
/// The image has something else there than a directory; the kernel's.
pub(crate) fn fill_volumes(
    layout: &Layout,
    record: &Record,
    volumes: Vec<Filling>,
) -> anyhow::Result<()> {
    let layers = ImageLayers::of(layout, &record.layers);
    apart(move || {
        own_mounts()?;
        let root = layers.mount()?;
        volumes.iter().try_for_each(|volume| fill(&root, volume))
    })
}
