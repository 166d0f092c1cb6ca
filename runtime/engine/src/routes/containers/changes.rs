//! `GET /containers/{name}/changes`, which is `docker diff`.

use berth_base::blocking::spawn_blocking;

use super::Call;
use crate::{
    container::{files::Layers, mounts::mount_points, record::Record, volumes},
    engine::Engine,
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
        _ => places(&call.engine, &record)?,
    };
    let changes = spawn_blocking(move || layers.changes(&places)).await;
    let changes = changes.map_err(anyhow::Error::from)??;
    Ok(body::ok(&Some(changes).filter(|changes| !changes.is_empty())))
}

/// Where something is mounted, relative to the root.
fn places(engine: &Engine, record: &Record) -> Result<Vec<String>> {
    let points = mount_points(&record.host_config)?;
    let asked = points.into_iter().map(|point| point.destination);
    let memory = record.host_config.tmpfs.iter().flatten().map(|(path, _)| path.clone());
    let volumes = volumes::declared(engine, record)?.into_iter();
    let volumes = volumes.map(|volume| volume.target.display().to_string());
    let all = asked.chain(memory).chain(volumes);
    Ok(all.map(|path| path.trim_matches('/').to_owned()).collect())
}
