//! `/_ping`, and what the engine says of itself.

use http::{HeaderValue, StatusCode};

use super::Call;
use crate::http::body::{self, Answer};

mod disk_usage;
mod info;
mod version;

pub(super) use self::{disk_usage::disk_usage, info::info, version::version};

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
