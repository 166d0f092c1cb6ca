//! `/_ping`, `/version` and `/info`.

use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::Call;
use crate::http::{
    body::{self, Answer},
    error::Result,
    version::{NEWEST, OLDEST},
};

/// What the engine says that it is: the dockerd whose API it serves.
const SERVER_VERSION: &str = "28.5.2";

pub(super) fn ping() -> Answer {
    let mut answer = body::text(StatusCode::OK, "OK");
    let headers = answer.headers_mut();
    headers.insert("builder-version", HeaderValue::from_static("1"));
    headers.insert("swarm", HeaderValue::from_static("inactive"));
    headers
        .insert("cache-control", HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert("pragma", HeaderValue::from_static("no-cache"));
    answer
}

pub(super) fn version(_: &Call) -> Result<Answer> {
    Ok(body::ok(&json!({
        "Platform": { "Name": "berth" },
        "Version": SERVER_VERSION,
        "ApiVersion": NEWEST.to_string(),
        "MinAPIVersion": OLDEST.to_string(),
        "Os": "linux",
        "Arch": "amd64",
    })))
}

pub(super) fn info(call: &Call) -> Result<Answer> {
    Ok(body::ok(&json!({
        "Containers": call.engine.containers.all().len(),
        "ServerVersion": SERVER_VERSION,
        "OSType": "linux",
    })))
}
