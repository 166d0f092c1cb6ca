//! `GET /containers/{name}/changes`, which is `docker diff`.

use berth_base::blocking::spawn_blocking;

use super::Call;
use crate::{
    container::{files::Layers, record::Record},
    http::{
        body::{self, Answer},
        error::Result,
    },
};

/// What the container has changed in its image; `null` for nothing.
pub(in crate::routes) async fn changes(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let record = container.record();
    let layers = Layers::of(&call.engine.node.host.layout, &record);
    // The places of mounts are made by the first start.
    let places = match container.state().last.started_at {
        0 => Vec::new(),
        _ => places(&record),
    };
    let changes = spawn_blocking(move || layers.changes(&places)).await;
    let changes = changes.map_err(anyhow::Error::from)??;
    Ok(body::ok(&Some(changes).filter(|changes| !changes.is_empty())))
}

/// Where something is mounted, relative to the root.
fn places(record: &Record) -> Vec<String> {
    let mounts = record.mounts.iter().map(|mount| mount.destination.as_str());
    let memory = record.host_config.tmpfs.iter().flatten().map(|(path, _)| path.as_str());
    mounts.chain(memory).map(|path| path.trim_matches('/').to_owned()).collect()
}
