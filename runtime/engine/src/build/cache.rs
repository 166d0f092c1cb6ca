//! Steps that were done before: images that an earlier build has made of the same image, by the same
//! instruction. Only what was made here counts, so that no image of a registry can pass for a step
//! (CVE-2024-24557): such an image has no parent, and those upon `scratch`, which have none either, are
//! noted in a directory.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use anyhow::Context;
use berth_base::{blocking::blocking, layout::Layout};
use berth_dockerfile::{Config, is_same};
use berth_image::{Digest, Image};
use serde::Deserialize;

use crate::{engine::Engine, time::parse_rfc3339};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    created: String,
    container_config: Option<Config>,
}

/// Whose steps are looked at.
#[derive(Debug)]
pub(crate) enum Sources {
    /// All that were done here.
    All,
    /// Those of these images, if they were made here (`--cache-from`).
    Of(BTreeSet<Digest>),
}

impl Sources {
    /// Names that no image here has stand for nothing.
    pub(crate) fn of(engine: &Engine, names: &[String]) -> Self {
        if names.is_empty() {
            return Self::All;
        }
        let images = &engine.node.host.images;
        let mut steps = BTreeSet::new();
        for name in names {
            let mut next = images.find(name).ok().flatten();
            while let Some(image) = next {
                let parent = images.parent(&image);
                steps.insert(image.id.clone());
                next = parent.and_then(|id| images.find(id.as_str()).ok().flatten());
            }
        }
        Self::Of(steps)
    }

    fn have(&self, image: &Image) -> bool {
        match self {
            Self::All => true,
            Self::Of(steps) => steps.contains(&image.id),
        }
    }
}

/// The newest image that this step has made of `parent`, or of nothing.
pub(crate) fn find(
    engine: &Engine,
    sources: &Sources,
    parent: Option<&Image>,
    step: &Config,
) -> Option<Arc<Image>> {
    let images = &engine.node.host.images;
    let candidates: Vec<Arc<Image>> = match parent {
        Some(parent) => {
            let children = images.children().remove(&parent.id).unwrap_or_default();
            children.iter().filter_map(|id| images.find(id.as_str()).ok().flatten()).collect()
        }
        None => blocking(|| upon_nothing(engine)),
    };
    let mut found: Option<(i64, Arc<Image>)> = None;
    for image in candidates.into_iter().filter(|image| sources.have(image)) {
        let Ok(bytes) = blocking(|| images.config_document(&image)) else { continue };
        let document: Document = serde_json::from_slice(&bytes).unwrap_or_default();
        if !document.container_config.is_some_and(|cached| is_same(&cached, step)) {
            continue;
        }
        let created = parse_rfc3339(&document.created).unwrap_or_default();
        if found.as_ref().is_none_or(|(newest, _)| *newest < created) {
            found = Some((created, image));
        }
    }
    // One whose layers are damaged is made again.
    found.map(|(_, image)| image).filter(|image| images.lease(&image.layers).is_some())
}

fn notes(layout: &Layout) -> PathBuf {
    layout.root.join("engine/scratch")
}

/// Notes an image that was made upon `scratch`. If the note is lost, the step is done again.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn note_upon_nothing(engine: &Engine, image: &Image) -> anyhow::Result<()> {
    let notes = notes(&engine.node.host.layout);
    fs::create_dir_all(&notes).with_context(|| format!("make {}", notes.display()))?;
    fs::write(notes.join(image.id.hex()), "").context("note an image")
}

/// The images that are noted and here. Notes of others are removed.
fn upon_nothing(engine: &Engine) -> Vec<Arc<Image>> {
    let notes = notes(&engine.node.host.layout);
    let mut found = Vec::new();
    for note in fs::read_dir(&notes).into_iter().flatten().flatten() {
        let id = format!("sha256:{}", note.file_name().to_string_lossy());
        match engine.node.host.images.find(&id) {
            Ok(Some(image)) => found.push(image),
            _ => drop(fs::remove_file(note.path())),
        }
    }
    found
}
