//! `GET /containers/json`.

use serde_json::{Value, json};

use super::{
    Call,
    network_settings::{endpoints, listed_ports},
    slashed,
};
use crate::{
    container::{object::Container, state::Phase},
    engine::Engine,
    http::{
        body::{self, Answer},
        error::Result,
    },
};

pub(in crate::routes) fn list(call: &Call) -> Result<Answer> {
    let all = call.query.flag("all") || !call.query.get("limit").is_empty();
    let limit: Option<usize> = call.query.number("limit")?;
    let listed: Vec<Value> = call
        .engine
        .containers
        .all()
        .iter()
        .filter(|container| all || container.state().is_running())
        .take(limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX))
        .map(|container| entry(&call.engine, container))
        .collect();
    Ok(body::ok(&listed))
}

fn entry(engine: &Engine, container: &std::sync::Arc<Container>) -> Value {
    let record = container.record();
    let state = container.state();
    let command = std::iter::once(&record.path).chain(&record.args).cloned().collect::<Vec<_>>();
    json!({
        "Id": container.id,
        "Names": [slashed(container)],
        "Image": record.config.image,
        "ImageID": record.image_id,
        "Command": command.join(" "),
        "Created": record.created_at / 1_000_000_000,
        "Ports": listed_ports(engine, container),
        "Labels": record.config.labels.clone().unwrap_or_default(),
        "State": state.status(),
        "Status": match state.phase {
            Phase::Running { .. } => "Up".to_owned(),
            Phase::Exited => format!("Exited ({})", state.last.exit_code),
            _ => "Created".to_owned(),
        },
        "HostConfig": { "NetworkMode": record.host_config.network_mode },
        "NetworkSettings": { "Networks": endpoints(engine, container) },
        "Mounts": [],
    })
}
