//! `POST /containers/prune`.

use std::sync::Arc;

use berth_base::{blocking::spawn_blocking, clock::now};
use serde_json::{Map, Value, json};

use super::Call;
use crate::{
    container::{life, object::Container, size, state::Phase},
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
};

pub(in crate::routes) async fn prune(call: &Call) -> Result<Answer> {
    let engine = &call.engine;
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["label", "label!", "until"])?;
    let until = filters.until(now()).map_err(Failure::bad_request)?;
    let mut deleted = Vec::new();
    let mut reclaimed = 0;
    for container in engine.containers.all() {
        let record = container.record();
        let labels = record.config.labels.clone().unwrap_or_default();
        if !is_at_rest(&container)
            || until.is_some_and(|until| record.created_at > until)
            || !filters.matches_labels_of_prune(&labels)
        {
            continue;
        }
        let upper = container.directory.path().join("upper");
        let written = spawn_blocking(move || size::written(&upper)).await.unwrap_or(0);
        // One that was started meanwhile stays.
        if life::remove(engine, &container, &container.id, life::With::default()).await.is_ok() {
            reclaimed += written;
            deleted.push(container.id.clone());
        }
    }
    let attributes =
        Map::from_iter([("reclaimed".to_owned(), Value::String(reclaimed.to_string()))]);
    engine.events.publish("container", "prune", "", attributes);
    let deleted = (!deleted.is_empty()).then_some(deleted);
    Ok(body::ok(&json!({ "ContainersDeleted": deleted, "SpaceReclaimed": reclaimed })))
}

fn is_at_rest(container: &Arc<Container>) -> bool {
    matches!(container.state().phase, Phase::Created | Phase::Exited)
}
