//! `/images`: pulled, listed, inspected, with their history, named and removed.

mod history;
mod pull;
mod remove;
mod tag;

use std::{collections::BTreeMap, sync::Arc};

use berth_base::blocking::{blocking, spawn_blocking};
use berth_image::{Image, Names, normalize};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Call;
use crate::{
    api::create::ContainerConfig,
    container::merge::of_image,
    engine::Engine,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    image_name::{self, familiar},
    time::{NEVER, parse_rfc3339},
};

pub(super) use self::{
    history::history,
    pull::pull,
    remove::{prune, remove},
    tag::tag,
};

/// An image of the list, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    containers: i64,
    created: i64,
    id: String,
    labels: Option<BTreeMap<String, String>>,
    parent_id: &'static str,
    repo_digests: Option<Vec<String>>,
    repo_tags: Vec<String>,
    shared_size: i64,
    size: u64,
}

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
    rootfs: RootFs,
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
    parent: &'static str,
    comment: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    created: String,
    docker_version: String,
    author: String,
    config: Value,
    architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    os: String,
    size: u64,
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

pub(super) async fn list(call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["dangling", "label", "before", "since", "reference", "until"])?;
    let dangling = filters.flag("dangling")?;
    let engine = call.engine.clone();
    let entries = spawn_blocking(move || entries(&engine, false)).await.unwrap_or_default();
    let listed: Vec<Entry> = entries
        .into_iter()
        .filter(|image| dangling.is_none_or(|dangling| dangling == image.repo_tags.is_empty()))
        .filter(|image| filters.matches_labels("label", image.labels.as_ref().unwrap_or(&NONE)))
        .filter(|image| is_referred(&filters, image))
        .collect();
    Ok(body::ok(&listed))
}

static NONE: BTreeMap<String, String> = BTreeMap::new();

/// By the pattern of a repository, or of a repository with a tag.
fn is_referred(filters: &Filters, image: &Entry) -> bool {
    !filters.contains("reference")
        || image.repo_tags.iter().chain(image.repo_digests.iter().flatten()).any(|name| {
            let repository = name.rsplit_once([':', '@']).map_or(name.as_str(), |(r, _)| r);
            let repository = repository.strip_suffix("@sha256").unwrap_or(repository);
            filters
                .values("reference")
                .any(|pattern| matches(pattern, name) || matches(pattern, repository))
        })
}

/// Whether a pattern with `*` fits, which does not go over slashes.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            let Some(rest) = text.strip_prefix(before) else { return false };
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.take_while(|at| !rest[..*at].contains('/')).any(|at| matches(after, &rest[at..]))
        }
    }
}

/// All images, the newest first.
pub(super) fn entries(engine: &Engine, counts: bool) -> Vec<Entry> {
    let images = &engine.node.host.images;
    let containers = engine.containers.all();
    let mut entries: Vec<Entry> = images
        .all()
        .iter()
        .map(|image| {
            let (document, config) = document(engine, image);
            let (repo_tags, repo_digests) = shown(images.names(image));
            let id = image.id.to_string();
            let used = containers.iter().filter(|container| container.record().image_id == id);
            Entry {
                containers: used.count() as i64,
                created: parse_rfc3339(&document.created).unwrap_or(0) / 1_000_000_000,
                id,
                labels: config.labels,
                parent_id: "",
                // In the table of what is used, none are null.
                repo_digests: Some(repo_digests).filter(|all| !counts || !all.is_empty()),
                repo_tags,
                shared_size: if counts { 0 } else { -1 },
                size: image.size,
            }
        })
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.created));
    entries
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

pub(super) async fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let engine = &call.engine;
    let images = &engine.node.host.images;
    let image = find(engine, name)?;
    let (document, config) = blocking(|| document(engine, &image));
    let (repo_tags, repo_digests) = shown(images.names(&image));
    let layers = engine.node.host.layout.layers();
    let paths: Vec<String> = image
        .layers
        .iter()
        .map(|key| layers.join(key).join(berth_image::FILES).to_string_lossy().into_owned())
        .collect();
    Ok(body::ok(&Inspected {
        id: image.id.to_string(),
        repo_tags,
        repo_digests,
        parent: "",
        comment: document.comment,
        created: document.created,
        docker_version: document.docker_version,
        author: document.author,
        config: shown_config(config, call.version),
        architecture: document.architecture,
        variant: document.variant,
        os: document.os,
        size: image.size,
        graph_driver: json!({
            "Data": {
                "LowerDir": paths.get(1..).unwrap_or_default().join(":"),
                "UpperDir": paths.first(),
            },
            "Name": "overlay2",
        }),
        root_fs: json!({ "Type": "layers", "Layers": document.rootfs.diff_ids }),
        metadata: json!({ "LastTagTime": NEVER }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_do_not_go_over_slashes() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("busy*:l*", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/b", "a/b", true),
            ("b", "busybox", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
