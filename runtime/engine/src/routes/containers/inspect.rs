//! `GET /containers/{name}/json`.

use serde_json::{Value, json};

use super::{Call, network_settings::network_settings, slashed};
use crate::{
    container::state::Phase,
    http::{
        body::{self, Answer},
        error::Result,
    },
};

pub(in crate::routes) fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let container = call.engine.containers.find(name)?;
    let record = container.record();
    let state = container.state();
    let pid = match state.phase {
        Phase::Running { pid } => pid,
        _ => 0,
    };
    let answer: Value = json!({
        "Id": container.id,
        "Created": record.created_at.to_string(),
        "Path": record.path,
        "Args": record.args,
        "State": {
            "Status": state.status(),
            "Running": state.is_running(),
            "Paused": false,
            "Restarting": state.phase == Phase::Restarting,
            "OOMKilled": state.last.oom,
            "Dead": false,
            "Pid": pid,
            "ExitCode": state.last.exit_code,
            "Error": state.last.error,
            "StartedAt": state.last.started_at.to_string(),
            "FinishedAt": state.last.finished_at.to_string(),
        },
        "Image": record.image_id,
        "Name": slashed(&container),
        "RestartCount": state.last.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "LogPath": container.directory.log(),
        "HostConfig": record.host_config,
        "Mounts": [],
        "Config": record.config,
        "NetworkSettings": network_settings(&call.engine, &container),
    });
    Ok(body::ok(&answer))
}
