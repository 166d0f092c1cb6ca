//! The image of a step: the layers and the config of the one before, with what the step has changed.

use std::sync::Arc;

use berth_base::{blocking::blocking, clock::now};
use berth_dockerfile::Config;
use berth_image::{Image, ImageToWrite, WrittenLayer};

use super::failure::Result;
use crate::{
    engine::Engine,
    images::{Child, document},
    time::rfc3339_nano,
};

/// A step that has been done.
#[derive(Debug)]
pub(crate) struct Done<'a> {
    /// Of the step before; `None` for the first one upon `scratch`.
    pub parent: Option<Arc<Image>>,
    /// `None` if it has changed no file.
    pub layer: Option<WrittenLayer>,
    /// What containers of the image get.
    pub config: &'a Config,
    /// By which it is found again; its command is what the history tells of the step.
    pub step: &'a Config,
    /// The container in which it was done; empty if there was none.
    pub container: &'a str,
    pub author: &'a str,
}

/// Writes the image of a step. It has no name.
///
/// # Errors
/// As `Images::write_image`.
pub(crate) async fn write(engine: &Engine, done: Done<'_>) -> Result<Arc<Image>> {
    let images = &engine.node.host.images;
    let parent = match &done.parent {
        Some(parent) => Some(blocking(|| images.config_document(parent))?),
        None => None,
    };
    let child = Child {
        author: done.author,
        comment: "",
        container: done.container,
        container_config: done.step,
        config: done.config,
        diff_id: done.layer.as_ref().map(|layer| &layer.diff_id),
        created: &rfc3339_nano(now()),
    };
    let image = ImageToWrite {
        config: document(parent.as_deref(), child)?,
        parent: done.parent,
        layers: done.layer.into_iter().collect(),
        names: Vec::new(),
    };
    Ok(images.write_image(image).await?)
}
