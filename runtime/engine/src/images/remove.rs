//! The removal of an image, or of one of its names.

use berth_base::blocking::blocking;
use berth_image::{Image, normalize};
use serde::Serialize;

use super::{
    removal::{Asked, Known, plan},
    users::users,
};
use crate::{engine::Engine, http::error::Result, image_name::familiar};

/// What became of a name, an image or a layer, as `DELETE /images/{name}` lists it.
#[derive(Clone, Debug, Serialize)]
pub(crate) enum Change {
    Untagged(String),
    /// The id of an image, or the chain-id of a layer.
    Deleted(String),
}

#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub changes: Vec<Change>,
    /// What the layers occupied on disk that went with it.
    pub bytes: u64,
}

/// Removes what `given` names of `image`: the image by its id, else a name, and the image if that is
/// its last one. Layers stay for as long as a container or another image needs them.
///
/// # Errors
/// 409 if something uses it.
pub(crate) fn remove(engine: &Engine, image: &Image, given: &str, force: bool) -> Result<Removed> {
    let images = &engine.node.host.images;
    let names = images.names(image);
    let mut names: Vec<String> = names.tags.into_iter().chain(names.digests).collect();
    names.sort_unstable();
    let stored = normalize(given).unwrap_or_default();
    let is_id = [image.id.as_str(), image.id.hex()].iter().any(|id| id.starts_with(given));
    let asked = match is_id {
        true => Asked::Id,
        false => Asked::Name { given, stored: &stored },
    };
    let known = Known { short: &image.id.hex()[..12], names: &names, users: &users(engine, image) };
    let plan = plan(&known, asked, force)?;
    let mut removed = Removed::default();
    for untagged in &plan.untagged {
        removed.changes.push(Change::Untagged(familiar(&untagged.name).to_owned()));
    }
    if !plan.is_deleted {
        let names: Vec<String> =
            plan.untagged.iter().map(|untagged| untagged.name.clone()).collect();
        blocking(|| images.untag(image, &names))?;
    }
    for _ in plan.untagged.iter().filter(|untagged| untagged.is_event) {
        engine.publish_image(image, "untag", image.id.as_str());
    }
    if plan.is_deleted {
        let layers = blocking(|| images.remove_image(image))?;
        engine.publish_removed_image(image);
        removed.changes.push(Change::Deleted(image.id.to_string()));
        removed.bytes = layers.iter().map(|layer| layer.bytes).sum();
        let layers = layers.into_iter().map(|layer| Change::Deleted(layer.chain_id.to_string()));
        removed.changes.extend(layers);
    }
    Ok(removed)
}
