//! `/volumes`.

use std::{collections::BTreeMap, sync::Arc};

use berth_base::{blocking::spawn_blocking, id};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Call;
use crate::{
    container::{mounts, size},
    engine::Engine,
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    time::rfc3339_seconds,
    volumes::{self, DRIVER, UNNAMED, Volume, Wanted},
};

/// One volume, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Shown {
    created_at: String,
    driver: &'static str,
    labels: Option<BTreeMap<String, String>>,
    mountpoint: String,
    name: String,
    options: Option<()>,
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_data: Option<Usage>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    ref_count: usize,
    /// In bytes.
    size: u64,
}

fn shown(engine: &Engine, volume: &Volume) -> Shown {
    Shown {
        created_at: rfc3339_seconds(volume.created_at),
        driver: DRIVER,
        labels: volume.labels.clone(),
        mountpoint: engine.volumes.data(&volume.name).display().to_string(),
        name: volume.name.clone(),
        options: None,
        scope: "local",
        usage_data: None,
    }
}

pub(super) fn list(call: &Call) -> Result<Answer> {
    let engine = &call.engine;
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let matches = |volume: &Arc<Volume>| {
        let labels = volume.labels.clone().unwrap_or_default();
        dangling.is_none_or(|dangling| dangling == (engine.volumes.users(&volume.name) == 0))
            && filters.matches_exactly("driver", DRIVER)
            && filters.matches_labels("label", &labels)
            && filters.expressions("name").matches(&volume.name)
    };
    let all = engine.volumes.all().into_iter().filter(matches);
    let listed: Vec<Shown> = all.map(|volume| shown(engine, &volume)).collect();
    Ok(body::ok(&json!({ "Volumes": listed, "Warnings": null })))
}

/// All of them, with their sizes.
pub(super) async fn all_with_sizes(engine: &Engine) -> Vec<Shown> {
    let all = engine.volumes.all();
    let data: Vec<_> = all.iter().map(|volume| engine.volumes.data(&volume.name)).collect();
    let sizes = spawn_blocking(move || data.iter().map(|data| size::written(data)).collect());
    let sizes: Vec<u64> = sizes.await.unwrap_or_default();
    let with_size = |(volume, size): (&Arc<Volume>, u64)| Shown {
        usage_data: Some(Usage { ref_count: engine.volumes.users(&volume.name), size }),
        ..shown(engine, volume)
    };
    all.iter().zip(sizes).map(with_size).collect()
}

pub(super) fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let volume = call.engine.volumes.find(name);
    let volume = volume.ok_or_else(|| Failure::not_found(format!("get {name}: no such volume")))?;
    Ok(body::ok(&shown(&call.engine, &volume)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CreateBody {
    name: Option<String>,
    driver: Option<String>,
    driver_opts: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

/// Makes a volume, or finds the one that has the name.
///
/// # Errors
/// 400 for a name that cannot be one, 404 for a driver that is not there, 501 for options.
pub(super) async fn create(call: Call) -> Result<Answer> {
    let Call { engine, request, .. } = call;
    body::check_json(&request)?;
    let asked: CreateBody = body::parse(request.into_body()).await?;
    if asked.cluster_volume_spec.is_some() {
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, super::absent::NO_MANAGER));
    }
    let mut labels = asked.labels;
    let name = asked.name.filter(|name| !name.is_empty()).unwrap_or_else(|| {
        labels.get_or_insert_default().insert(UNNAMED.to_owned(), String::new());
        id::random_hex(32)
    });
    if let Some(driver) = asked.driver.filter(|driver| !["", DRIVER].contains(&driver.as_str())) {
        return Err(mounts::unknown_driver(&name, &driver));
    }
    if !volumes::is_name(&name) {
        return Err(Failure::bad_request(volumes::invalid_name(&name)));
    }
    if asked.driver_opts.is_some_and(|options| !options.is_empty()) {
        let text = format!("create {name}: options of the local driver are not implemented yet");
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, text));
    }
    let volume = engine.make_volume(Wanted { name, labels, is_of_boot: false })?;
    Ok(body::json(StatusCode::CREATED, &shown(&engine, &volume)))
}

/// Removes a volume. With `force`, one that is not there is removed already.
pub(super) fn remove(call: &Call, name: &str) -> Result<Answer> {
    match volumes::remove(&call.engine, name) {
        Err(failure) if failure.status == StatusCode::NOT_FOUND && call.query.flag("force") => {}
        removed => removed?,
    }
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Removes the volumes that nobody has named, or all, as far as no container uses them.
pub(super) async fn prune(call: &Call) -> Result<Answer> {
    let engine = &call.engine;
    let filters = Filters::parse(call.query.get("filters"))?;
    filters.accept(&["all", "label", "label!"])?;
    // Before 1.42 there was no difference.
    let all = filters.flag("all")?.unwrap_or(call.version < Version(42));
    let mut deleted = Vec::new();
    let mut reclaimed = 0;
    for volume in engine.volumes.all() {
        let labels = volume.labels.clone().unwrap_or_default();
        let is_wanted = (all || labels.contains_key(UNNAMED))
            && filters.matches_labels_of_prune(&labels)
            && engine.volumes.users(&volume.name) == 0;
        if !is_wanted {
            continue;
        }
        let data = engine.volumes.data(&volume.name);
        let size = spawn_blocking(move || size::written(&data)).await.unwrap_or(0);
        // One that a container uses by now stays.
        if volumes::remove(engine, &volume.name).is_ok() {
            reclaimed += size;
            deleted.push(volume.name.clone());
        }
    }
    let attributes = Map::from_iter([("reclaimed".to_owned(), reclaimed.to_string().into())]);
    engine.events.publish("volume", "prune", "", attributes);
    Ok(body::ok(&json!({ "VolumesDeleted": deleted, "SpaceReclaimed": reclaimed })))
}
