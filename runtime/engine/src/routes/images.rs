//! `/images`: pulled, listed, inspected, with their history, named and removed.

mod history;
mod import;
mod list;
mod load;
mod pull;
mod push;
mod remove;
mod save;
mod search;
mod tag;

use std::{mem, sync::Arc};

use berth_base::blocking::blocking;
use berth_image::{Image, Names, normalize};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Call;
use crate::{
    api::{create::ContainerConfig, json},
    container::merge::of_image,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    image_name::{self, familiar},
    time::rfc3339_or_never,
};

pub(super) use self::{
    history::history,
    import::import,
    list::{list, used},
    load::load,
    pull::pull,
    push::push,
    remove::{prune, remove},
    save::{save, save_one},
    search::search,
    tag::tag,
};

/// What an image's config document says beside the config of containers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    created: String,
    author: String,
    architecture: String,
    variant: String,
    os: String,
    comment: String,
    docker_version: String,
    container: String,
    container_config: Option<Map<String, Value>>,
    history: Option<Vec<Step>>,
    rootfs: RootFs,
}

/// A step of how an image was made.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    created: String,
    created_by: String,
    comment: String,
    empty_layer: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The answer of inspect.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: String,
    comment: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    created: String,
    /// Of the container that it was made of, for old clients.
    #[serde(skip_serializing_if = "String::is_empty")]
    container: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_config: Option<ContainerConfig>,
    docker_version: String,
    author: String,
    config: Value,
    architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    os: String,
    size: u64,
    /// The same, for old clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    graph_driver: Value,
    #[serde(rename = "RootFS")]
    root_fs: Value,
    metadata: Value,
}

fn document(engine: &Engine, image: &Image) -> (Document, ContainerConfig) {
    let bytes = engine.node.host.images.config_document(image).unwrap_or_default();
    (serde_json::from_slice(&bytes).unwrap_or_default(), of_image(&bytes))
}

/// The names as docker shows them.
fn shown(names: Names) -> (Vec<String>, Vec<String>) {
    let short = |names: Vec<String>| names.iter().map(|name| familiar(name).to_owned()).collect();
    (short(names.tags), short(names.digests))
}

/// # Errors
/// 404; 400 for what cannot be a name.
pub(super) fn find(engine: &Engine, name: &str) -> Result<Arc<Image>> {
    if normalize(name).is_none() {
        return Err(image_name::invalid(name));
    }
    // The beginning of several ids is that of none.
    let found = engine.node.host.images.find(name).ok().flatten();
    found
        .ok_or_else(|| Failure::not_found(format!("No such image: {}", image_name::with_tag(name))))
}

/// Fields that only containers have; older clients get them of images, too.
const OF_CONTAINERS: [&str; 9] = [
    "Hostname",
    "Domainname",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Image",
];

/// The config of an image, which names no other image.
fn shown_config(config: ContainerConfig, version: Version) -> Value {
    let config = ContainerConfig { image: String::new(), ..config };
    let mut shown = serde_json::to_value(&config).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut().filter(|_| version >= Version(50)) {
        fields.retain(|name, _| !OF_CONTAINERS.contains(&name.as_str()));
    }
    shown
}

/// What the image says of itself, or of its last step.
fn comment(document: &mut Document) -> String {
    let last = document.history.as_mut().and_then(|steps| steps.pop());
    match document.comment.is_empty() {
        true => last.unwrap_or_default().comment,
        false => mem::take(&mut document.comment),
    }
}

fn container_config(document: Option<Map<String, Value>>) -> ContainerConfig {
    json::fields(&mut document.unwrap_or_default(), "container_config").unwrap_or_default()
}

pub(super) async fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let engine = &call.engine;
    let images = &engine.node.host.images;
    let image = find(engine, name)?;
    let (mut document, config) = blocking(|| document(engine, &image));
    let is_old = call.version < Version(45);
    let (repo_tags, repo_digests) = shown(images.names(&image));
    let layers = engine.node.host.layout.layers();
    let paths: Vec<String> = image
        .layers
        .iter()
        .map(|key| layers.join(key).join(berth_image::FILES).to_string_lossy().into_owned())
        .collect();
    let mut data = json!({ "UpperDir": paths.first() });
    if let Some(lower) = paths.get(1..).filter(|lower| !lower.is_empty()) {
        data["LowerDir"] = lower.join(":").into();
    }
    Ok(body::ok(&Inspected {
        id: image.id.to_string(),
        repo_tags,
        repo_digests,
        parent: images.parent(&image).map(|id| id.to_string()).unwrap_or_default(),
        comment: comment(&mut document),
        created: document.created,
        container: if is_old { document.container } else { String::new() },
        container_config: is_old.then(|| container_config(document.container_config)),
        docker_version: document.docker_version,
        author: document.author,
        config: shown_config(config, call.version),
        architecture: document.architecture,
        variant: document.variant,
        os: document.os,
        size: image.size,
        virtual_size: (call.version < Version(44)).then_some(image.size),
        graph_driver: json!({ "Data": data, "Name": "overlay2" }),
        root_fs: json!({ "Type": "layers", "Layers": document.rootfs.diff_ids }),
        metadata: json!({ "LastTagTime": rfc3339_or_never(images.tagged_at(&image)) }),
    }))
}
