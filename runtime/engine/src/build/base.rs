//! The images that a build begins with, or copies from: those that are here, else those of registries.

use std::sync::Arc;

use anyhow::Context;
use berth_image::{Image, normalize};

use super::{
    failure::{BuildFailure, Result},
    options::Options,
    output::Output,
};
use crate::{
    container::platform::Platform,
    engine::Engine,
    image_name,
    images::{Pull, Reference},
};

/// Finds an image by its name or id, and pulls it if it is not here or that is asked for.
///
/// # Errors
/// In dockerd's words for what is no name; what the registry says.
pub(crate) async fn image(
    engine: &Arc<Engine>,
    options: &Options,
    name: &str,
    platform: Option<&Platform>,
    output: &Output,
) -> Result<Arc<Image>> {
    if let Some(platform) = platform
        && !platform.is_own()
    {
        let text = format!("only images for this machine can be used, and none for {platform}");
        return Err(BuildFailure::new(text));
    }
    let images = &engine.node.host.images;
    if !options.pulls
        && let Some(found) = images.find(name).ok().flatten()
    {
        return Ok(found);
    }
    let full = normalize(name).ok_or_else(|| image_name::invalid(name))?;
    let reference = Reference::parse(&full);
    let (shown, repository) = (reference.shown(), reference.repository.clone());
    let pull = Pull::begin(engine.clone(), reference, options.auth(&full)).await?;
    pull.tell(output.lines()).await?.end(engine, &shown, &repository, output.lines()).await;
    let pulled = images.find(&full)?;
    Ok(pulled.with_context(|| format!("{full} was removed while it was pulled"))?)
}
