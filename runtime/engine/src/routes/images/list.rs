//! `GET /images/json`.

use std::collections::{BTreeMap, HashMap};

use berth_base::{blocking::spawn_blocking, clock::now};
use berth_image::Digest;
use http::StatusCode;
use serde::Serialize;

use super::{document, find, shown};
use crate::{
    engine::Engine,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    image_name::repository,
    path_match::{BadPattern, path_match},
    routes::Call,
    time::parse_rfc3339,
};

/// An image of the list, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::routes) struct Entry {
    containers: i64,
    created: i64,
    id: String,
    labels: Option<BTreeMap<String, String>>,
    parent_id: String,
    repo_digests: Option<Vec<String>>,
    repo_tags: Vec<String>,
    shared_size: i64,
    size: u64,
    /// As `Size`, for old clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    #[serde(skip)]
    created_nanos: Option<i64>,
    /// Whether another image was made of it here.
    #[serde(skip)]
    has_children: bool,
}

/// What the filters of a list come to.
struct Chosen {
    /// Whether images without a name are listed of which others were made.
    all: bool,
    filters: Filters,
    dangling: Option<bool>,
    before: Option<i64>,
    since: Option<i64>,
    until: Option<i64>,
}

static NONE: BTreeMap<String, String> = BTreeMap::new();

/// The images that the filters choose, the newest first. Without `all` those of the steps of a build
/// are left out. Manifests of other platforms are not kept, so that `manifests` has no more.
///
/// # Errors
/// 400 for filters that do not parse, 404 for an image that one names and that is not here.
pub(in crate::routes) async fn list(call: &Call) -> Result<Answer> {
    let chosen = Chosen::parse(call)?;
    let engine = call.engine.clone();
    let shares = call.query.flag("shared-size");
    let read = move || {
        let shared = shares.then(|| engine.node.host.images.shared_sizes());
        (entries(&engine), shared.unwrap_or_default())
    };
    let (entries, shared) = spawn_blocking(read).await.unwrap_or_default();
    let mut listed = Vec::new();
    for mut entry in entries {
        if !chosen.name(&mut entry)? || !chosen.includes(&entry) {
            continue;
        }
        entry.share(&shared);
        entry.show_to(call.version);
        listed.push(entry);
    }
    Ok(body::ok(&listed))
}

impl Chosen {
    fn parse(call: &Call) -> Result<Self> {
        let filters = Filters::parse(call.query.get("filters"))?;
        filters.accept(&["dangling", "label", "before", "since", "reference", "until"])?;
        let created = |key: &str| {
            let mut created = None;
            for name in filters.values(key) {
                let image = find(&call.engine, name)?;
                let (document, _) = document(&call.engine, &image);
                // An image that does not say when it was made is neither before nor after others.
                created = parse_rfc3339(&document.created);
            }
            Ok::<_, Failure>(created)
        };
        let until = filters
            .until(now())
            .map_err(|why| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why))?;
        Ok(Self {
            all: call.query.flag("all"),
            dangling: filters.flag("dangling")?,
            before: created("before")?,
            since: created("since")?,
            until,
            filters,
        })
    }

    /// Leaves the names that the filter wants; false if there is such a filter and none is left.
    fn name(&self, entry: &mut Entry) -> Result<bool> {
        if !self.filters.contains("reference") {
            return Ok(true);
        }
        entry.repo_tags = self.referred(&entry.repo_tags)?;
        let digests = self.referred(entry.repo_digests.as_deref().unwrap_or_default())?;
        let is_left = !entry.repo_tags.is_empty() || !digests.is_empty();
        entry.repo_digests = Some(digests);
        Ok(is_left)
    }

    /// Those of the names that a pattern fits, with or without their tag or digest.
    fn referred(&self, names: &[String]) -> Result<Vec<String>> {
        let mut referred = Vec::new();
        for name in names {
            for pattern in self.filters.values("reference") {
                let matched = path_match(pattern, name)
                    .and_then(|is_whole| Ok(is_whole || path_match(pattern, repository(name))?));
                let matched = matched.map_err(|BadPattern| {
                    let text = "syntax error in pattern";
                    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text)
                })?;
                if matched {
                    referred.push(name.clone());
                    break;
                }
            }
        }
        Ok(referred)
    }

    fn includes(&self, entry: &Entry) -> bool {
        let created = entry.created_nanos;
        let has_digest = entry.repo_digests.as_ref().is_some_and(|digests| !digests.is_empty());
        (self.all || !entry.is_step())
            && self.dangling.is_none_or(|wanted| match wanted {
                true => entry.repo_tags.is_empty() && !entry.has_children,
                // One with a digest is not quite without a name.
                false => !entry.repo_tags.is_empty() || has_digest,
            })
            && self.before.is_none_or(|before| created.is_none_or(|created| created < before))
            && self.since.is_none_or(|since| created.is_none_or(|created| created > since))
            && self.until.is_none_or(|until| created.is_some_and(|created| created <= until))
            && self.filters.matches_labels("label", entry.labels.as_ref().unwrap_or(&NONE))
    }
}

impl Entry {
    /// Whether it is there for the images that were made of it, and for nobody else.
    fn is_step(&self) -> bool {
        let has_digest = self.repo_digests.as_ref().is_some_and(|digests| !digests.is_empty());
        self.has_children && self.repo_tags.is_empty() && !has_digest
    }

    fn share(&mut self, shared: &HashMap<Digest, u64>) {
        let own = Digest::parse(&self.id).ok().and_then(|id| shared.get(&id));
        self.shared_size = own.map_or(-1, |bytes| i64::try_from(*bytes).unwrap_or(i64::MAX));
    }

    /// Has the form that clients of this version know.
    fn show_to(&mut self, version: Version) {
        if version < Version(51) {
            self.containers = -1;
        }
        if version < Version(44) {
            self.virtual_size = Some(self.size);
        }
        if version < Version(43) && self.repo_digests.as_ref().is_some_and(Vec::is_empty) {
            self.repo_digests = None;
            if self.repo_tags.is_empty() {
                self.repo_tags.push("<none>:<none>".to_owned());
                self.repo_digests = Some(vec!["<none>@<none>".to_owned()]);
            }
        }
    }
}

/// All images, the newest first.
fn entries(engine: &Engine) -> Vec<Entry> {
    let images = &engine.node.host.images;
    let containers = engine.containers.all();
    let children = images.children();
    let mut entries: Vec<Entry> = images
        .all()
        .iter()
        .map(|image| {
            let (document, config) = document(engine, image);
            let (repo_tags, repo_digests) = shown(images.names(image));
            let id = image.id.to_string();
            let used = containers.iter().filter(|container| container.record().image_id == id);
            let created_nanos = parse_rfc3339(&document.created);
            Entry {
                containers: used.count() as i64,
                created: created_nanos.unwrap_or(0) / 1_000_000_000,
                id,
                labels: config.labels,
                parent_id: images.parent(image).map(|id| id.to_string()).unwrap_or_default(),
                repo_digests: Some(repo_digests),
                repo_tags,
                shared_size: -1,
                size: image.size,
                virtual_size: None,
                created_nanos,
                has_children: children.contains_key(&image.id),
            }
        })
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.created));
    entries
}

/// As the table of what is used has them: with what they share, and null for no digests.
pub(in crate::routes) fn used(engine: &Engine, version: Version) -> Vec<Entry> {
    let shared = engine.node.host.images.shared_sizes();
    let mut entries = entries(engine);
    entries.retain(|entry| !entry.is_step());
    for entry in &mut entries {
        entry.share(&shared);
        entry.virtual_size = (version < Version(44)).then_some(entry.size);
        entry.repo_digests = entry.repo_digests.take().filter(|digests| !digests.is_empty());
    }
    entries
}
