//! The images that a build begins with, or copies from: those that are here, else those of registries.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Context;
use berth_base::error::Kind;
use berth_image::{Image, LayerStep, normalize, watch};
use serde_json::json;

use super::{
    failure::{BuildFailure, Result},
    options::Options,
    output::Output,
};
use crate::{container::platform::Platform, engine::Engine, image_name};

/// Finds an image by its name or id, and pulls it if it is not here or that is asked for.
///
/// # Errors
/// In dockerd's words for what is no name; what the registry says.
pub(crate) async fn image(
    engine: &Engine,
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
    pull(engine, options, &full, output).await?;
    let pulled = images.find(&full)?;
    Ok(pulled.with_context(|| format!("{full} was removed while it was pulled"))?)
}

/// Pulls an image, and tells of its layers as `docker pull` does.
async fn pull(engine: &Engine, options: &Options, name: &str, output: &Output) -> Result<()> {
    let images = engine.node.host.images.clone();
    let before = images.find(name).ok().flatten().map(|image| image.id.clone());
    let (watched, mut layers) = watch();
    let pulling = {
        let (images, name, auth) = (images, name.to_owned(), options.auth(name));
        tokio::spawn(async move { images.pull_watched(&name, auth, watched).await })
    };
    let (repository, target) = match name.split_once('@') {
        Some((repository, digest)) => (repository, digest),
        None => name.rsplit_once(':').unwrap_or((name, "latest")),
    };
    let path = repository.split_once('/').map_or(repository, |(_, path)| path);
    let mut is_begun = false;
    let mut is_new = false;
    let mut told = BTreeSet::new();
    while let Some(layer) = layers.recv().await {
        if !is_begun {
            is_begun = true;
            let status = format!("Pulling from {path}");
            output.line(&json!({ "status": status, "id": target })).await;
        }
        is_new |= layer.step == LayerStep::Waiting;
        let (status, detail) = match layer.step {
            LayerStep::Present => ("Already exists", json!({})),
            LayerStep::Waiting => ("Pulling fs layer", json!({})),
            LayerStep::Downloading { received, size } => {
                ("Downloading", json!({ "current": received, "total": size }))
            }
            LayerStep::Downloaded => ("Download complete", json!({})),
            LayerStep::Complete => ("Pull complete", json!({})),
        };
        // An image may have a layer twice.
        if told.insert((layer.blob.to_string(), format!("{:?}", layer.step))) {
            let id = layer.blob.hex().get(..12);
            let line = json!({ "status": status, "progressDetail": detail, "id": id });
            output.line(&line).await;
        }
    }
    let pulled = pulling.await.context("pull an image")?;
    let id = pulled.map_err(|error| match error.kind {
        // 401 would be the engine's own refusal.
        Kind::Unauthenticated => BuildFailure::new(error.message),
        _ => error.into(),
    })?;
    let images = &engine.node.host.images;
    if let Some(image) = images.find(id.as_str())? {
        let prefix = format!("{repository}@");
        let digests = images.names(&image).digests;
        if let Some(digest) = digests.iter().find_map(|name| name.strip_prefix(&prefix)) {
            output.line(&json!({ "status": format!("Digest: {digest}") })).await;
        }
        let shown = image_name::familiar(name);
        engine.publish_image_as(&image, "pull", shown, image_name::familiar(repository));
        let status = match is_new || before.as_ref() != Some(&id) {
            true => format!("Status: Downloaded newer image for {shown}"),
            false => format!("Status: Image is up to date for {shown}"),
        };
        output.line(&json!({ "status": status })).await;
    }
    Ok(())
}
