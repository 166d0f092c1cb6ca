//! `DELETE /images/{name}` and `POST /images/prune`.

use berth_base::clock::now;
use berth_image::Names;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{document, find};
use crate::{
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    images::{self, Options, Removed},
    routes::Call,
    time::parse_rfc3339,
};

/// Removes an image or a name of it; and unless the client says `noprune`, the images without a name
/// that it was made of.
///
/// # Errors
/// 404 if it is not here, 409 if it is in use.
pub(in crate::routes) fn remove(call: &Call, name: &str) -> Result<Answer> {
    if name.trim().is_empty() {
        return Err(Failure::bad_request("image name cannot be blank"));
    }
    let image = find(&call.engine, name)?;
    let (force, keeps_parents) = (call.query.flag("force"), call.query.flag("noprune"));
    let removed = images::remove(&call.engine, &image, name, Options { force, keeps_parents })?;
    Ok(body::ok(&removed.changes))
}

/// Removes the images without a tag, or with `dangling=false` all that no container uses. One without
/// a name of which another one was made goes with that.
///
/// # Errors
/// 409 while another one runs.
pub(in crate::routes) fn prune(call: &Call) -> Result<Answer> {
    let _running = call
        .engine
        .image_prune
        .try_lock()
        .map_err(|_| Failure::conflict("a prune operation is already running"))?;
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["dangling", "label", "label!", "until"])?;
    let dangling_only = filters.flag("dangling")?.unwrap_or(true);
    let until =
        filters.until(now()).map_err(|why| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why))?;
    let store = &call.engine.node.host.images;
    let mut pruned = Removed::default();
    for image in store.all() {
        let (document, config) = document(&call.engine, &image);
        let created = parse_rfc3339(&document.created);
        let is_young = until.is_some_and(|until| created.is_none_or(|created| created > until));
        if is_young || !filters.matches_labels_of_prune(&config.labels.unwrap_or_default()) {
            continue;
        }
        let names = store.names(&image);
        if names == Names::default() && store.children().contains_key(&image.id) {
            continue;
        }
        if dangling_only && !names.tags.is_empty() {
            continue;
        }
        let mut given: Vec<String> = names.tags.into_iter().chain(names.digests).collect();
        if given.is_empty() {
            given.push(image.id.to_string());
        }
        for given in given {
            // One that went with another name is gone; one that is in use stays.
            if !matches!(store.find(&given), Ok(Some(found)) if found.id == image.id) {
                continue;
            }
            if let Ok(removed) = images::remove(&call.engine, &image, &given, Options::default()) {
                pruned.changes.extend(removed.changes);
                pruned.bytes += removed.bytes;
            }
        }
    }
    let reclaimed = Value::from(pruned.bytes.to_string());
    let attributes = Map::from_iter([("reclaimed".to_owned(), reclaimed)]);
    call.engine.events.publish("image", "prune", "", attributes);
    let deleted = Some(pruned.changes).filter(|changes| !changes.is_empty());
    Ok(body::ok(&json!({ "ImagesDeleted": deleted, "SpaceReclaimed": pruned.bytes })))
}
