//! `GET /version`.

use serde::Serialize;
use serde_json::json;

use super::Call;
use crate::{
    api::SERVER_VERSION,
    http::{
        body::{self, Answer},
        error::Result,
        version::{NEWEST, OLDEST},
    },
};

/// The answer, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    platform: serde_json::Value,
    components: Vec<Component>,
    version: &'static str,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: String,
    git_commit: &'static str,
    go_version: &'static str,
    os: &'static str,
    arch: &'static str,
    kernel_version: String,
    build_time: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: &'static str,
    version: &'static str,
    details: serde_json::Value,
}

/// Tools parse these, so that a text must be there.
const UNKNOWN: &str = "unknown";

pub(in crate::routes) fn version(_: &Call) -> Result<Answer> {
    let kernel = kernel();
    let arch = architecture();
    let engine = Component {
        name: "Engine",
        version: SERVER_VERSION,
        details: json!({
            "ApiVersion": NEWEST.to_string(),
            "Arch": arch,
            "BuildTime": UNKNOWN,
            "Experimental": "false",
            "GitCommit": UNKNOWN,
            "GoVersion": UNKNOWN,
            "KernelVersion": kernel,
            "MinAPIVersion": OLDEST.to_string(),
            "Os": "linux",
        }),
    };
    let berth = Component {
        name: "berth",
        version: env!("CARGO_PKG_VERSION"),
        details: json!({ "GitCommit": "" }),
    };
    Ok(body::ok(&Version {
        platform: json!({ "Name": "berth" }),
        components: vec![engine, berth],
        version: SERVER_VERSION,
        api_version: NEWEST.to_string(),
        min_api_version: OLDEST.to_string(),
        git_commit: UNKNOWN,
        go_version: UNKNOWN,
        os: "linux",
        arch,
        kernel_version: kernel,
        build_time: UNKNOWN,
    }))
}

/// The processor in Go's words.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn kernel() -> String {
    let release = rustix::system::uname();
    release.release().to_string_lossy().into_owned()
}
