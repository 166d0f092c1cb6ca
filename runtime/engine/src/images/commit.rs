//! A container as an image: what it has written becomes a layer on top of those of its image.
//!
//! What is mounted in a container is not in that: volumes, binds, and the files of `/etc` that berth
//! writes itself. The places of mounts are in the lowest layer of the container, which no image has.

use std::sync::Arc;

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, error::Error};
use berth_dockerfile::Config;
use berth_image::{Digest, Image, ImageToWrite, WrittenLayer};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::child::{Child, document};
use crate::{
    container::{files::Layers, object::Container, state::Phase},
    engine::Engine,
    http::error::{Failure, Result},
    time::rfc3339_nano,
};

/// What an image that is made of a container says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Committed {
    pub author: String,
    pub comment: String,
    pub config: Config,
    /// In full, with its tag. `None` for an image without a name.
    pub name: Option<String>,
}

/// Makes an image of a container, which must not write meanwhile. Until `Images::make_durable` a power
/// loss may cost it.
///
/// # Errors
/// 404 if the container's image is gone; 409 if the container is being removed; those of the
/// filesystem.
pub(crate) async fn commit(
    engine: &Engine,
    container: &Container,
    asked: &Committed,
) -> Result<Arc<Image>> {
    let images = &engine.node.host.images;
    let record = container.record();
    let parent = Digest::parse(&record.image_id)?;
    let parent = images
        .find(parent.as_str())?
        .ok_or_else(|| Failure::not_found(format!("No such image: {}", record.image_id)))?;
    let layer = write_layer(engine, container).await?;
    let document = blocking(|| images.config_document(&parent)).and_then(|parent| {
        document(
            Some(&parent),
            Child {
                author: &asked.author,
                comment: &asked.comment,
                container: &container.id,
                container_config: &record.config,
                config: &asked.config,
                diff_id: layer.as_ref().map(|layer| &layer.diff_id),
                created: &rfc3339_nano(now()),
            },
        )
    })?;
    let written = images
        .write_image(ImageToWrite {
            parent: Some(parent),
            layers: layer.into_iter().collect(),
            config: document,
            names: asked.name.iter().cloned().collect(),
        })
        .await?;
    Ok(written)
}

/// The layer of what a container has written; `None` if that is nothing.
async fn write_layer(engine: &Engine, container: &Container) -> Result<Option<WrittenLayer>> {
    check(container)?;
    let layers = Layers::of(&engine.node.host.layout, &container.record());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = blocking(|| openat(CWD, layers.upper(), flags, Mode::empty()));
    let upper = upper.context("open what the container has written").map_err(Error::from)?;
    let images = &engine.node.host.images;
    let written = images.write_upper(upper).await?;
    // A removal takes its files away one by one, and then the layer has not all of them.
    check(container).inspect_err(|_| images.collect())?;
    Ok(written)
}

fn check(container: &Container) -> Result<()> {
    match container.state().phase {
        Phase::Removing | Phase::Removed => Err(Failure::conflict(format!(
            "You cannot commit container {} which is being removed",
            container.id
        ))),
        _ => Ok(()),
    }
}
