//! `GET /containers/{name}/export`.

use serde_json::json;

use super::Call;
use crate::{
    archive::ContainerFiles,
    container::files::{Files, Scope},
    http::{
        body::{self, Answer},
        error::Result,
        transfer,
    },
};

/// All files of a container as a tar, without those of its mounts.
pub(in crate::routes) async fn export(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let files = Files::open(&call.engine, &container, Scope::RootOnly).await?;
    call.engine.publish(&container, "export", json!({}));
    let name = name.to_owned();
    let tar = transfer::send(move |to| Ok(ContainerFiles::new(files.root(), &name).export(to)?));
    Ok(body::streaming("application/octet-stream", tar))
}
