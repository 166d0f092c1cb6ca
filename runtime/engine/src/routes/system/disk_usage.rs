//! `GET /system/df`.

use berth_base::blocking::spawn_blocking;
use serde_json::{Value, json};

use super::Call;
use crate::{
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    routes::{containers, images, volumes},
};

/// What each kind of object occupies. `type` may be there several times, and names the kinds.
pub(in crate::routes) async fn disk_usage(call: &Call) -> Result<Answer> {
    let asked: Vec<&str> = call.query.all("type").collect();
    let known = ["container", "image", "volume", "build-cache"];
    if let Some(unknown) = asked.iter().find(|kind| !known.contains(kind)) {
        return Err(Failure::bad_request(format!("unknown object type: {unknown}")));
    }
    let wants = |kind: &str| asked.is_empty() || asked.contains(&kind);
    let mut answer = serde_json::Map::new();
    if wants("image") {
        let images_engine = call.engine.clone();
        let size = call.engine.node.host.images.usage().bytes;
        let version = call.version;
        let images = spawn_blocking(move || images::used(&images_engine, version)).await;
        answer.insert("LayersSize".to_owned(), size.into());
        answer.insert("Images".to_owned(), to_value(images.unwrap_or_default()));
    } else {
        answer.insert("LayersSize".to_owned(), 0.into());
        answer.insert("Images".to_owned(), Value::Null);
    }
    let containers = match wants("container") {
        true => to_value(containers::all_with_sizes(&call.engine).await),
        false => Value::Null,
    };
    answer.insert("Containers".to_owned(), containers);
    let volumes = match wants("volume") {
        true => to_value(volumes::all_with_sizes(&call.engine).await),
        false => Value::Null,
    };
    answer.insert("Volumes".to_owned(), volumes);
    let cache = if wants("build-cache") { json!([]) } else { Value::Null };
    answer.insert("BuildCache".to_owned(), cache);
    Ok(body::ok(&answer))
}

fn to_value<T: serde::Serialize>(list: Vec<T>) -> Value {
    serde_json::to_value(list).unwrap_or_default()
}
