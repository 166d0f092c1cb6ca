//! The removal of an image, or of one of its names.

use berth_base::blocking::blocking;
use berth_image::{Digest, Image, Names, normalize};
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

/// What a removal does beyond the image.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Whether names and stopped containers do not keep it.
    pub force: bool,
    /// Whether the images that it was made of stay, although nothing else needs them.
    pub keeps_parents: bool,
}

/// Removes what `given` names of `image`: the image by its id, else a name, and the image if that is
/// its last one. Layers stay for as long as a container or another image needs them.
///
/// # Errors
/// 409 if something uses it.
pub(crate) fn remove(
    engine: &Engine,
    image: &Image,
    given: &str,
    options: Options,
) -> Result<Removed> {
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
    let known = Known {
        short: &image.id.hex()[..12],
        names: &names,
        users: &users(engine, image),
        has_children: images.children().contains_key(&image.id),
    };
    let plan = plan(&known, asked, options.force)?;
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
        let parent = images.parent(image).filter(|_| !options.keeps_parents);
        delete(engine, image, &mut removed)?;
        remove_unneeded(engine, parent, &mut removed);
    }
    Ok(removed)
}

fn delete(engine: &Engine, image: &Image, removed: &mut Removed) -> Result<()> {
    let layers = blocking(|| engine.node.host.images.remove_image(image))?;
    engine.publish_removed_image(image);
    removed.changes.push(Change::Deleted(image.id.to_string()));
    removed.bytes += layers.iter().map(|layer| layer.bytes).sum::<u64>();
    let layers = layers.into_iter().map(|layer| Change::Deleted(layer.chain_id.to_string()));
    removed.changes.extend(layers);
    Ok(())
}

/// Removes the images that one was made of, down to the first that has a name, another child or a
/// user.
fn remove_unneeded(engine: &Engine, first: Option<Digest>, removed: &mut Removed) {
    let images = &engine.node.host.images;
    let mut next = first;
    while let Some(image) = next.and_then(|id| images.find(id.as_str()).ok().flatten()) {
        let is_needed = images.names(&image) != Names::default()
            || images.children().contains_key(&image.id)
            || !users(engine, &image).is_empty();
        if is_needed {
            return;
        }
        next = images.parent(&image);
        if let Err(failure) = delete(engine, &image, removed) {
            // What was asked for is done. A prune comes by here again.
            tracing::warn!(image = %image.id, "not removed: {}", failure.message);
            return;
        }
    }
}
