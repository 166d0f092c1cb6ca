//! Why a build ended.

use std::fmt::Display;

use berth_base::error::Error;
use http::StatusCode;
use serde_json::{Value, json};

use crate::http::error::Failure;

/// The failure of a build: an answer if nothing was told before, else the last line.
#[derive(Clone, Debug)]
pub(crate) struct BuildFailure {
    pub failure: Failure,
    /// The exit code of a step's command.
    pub code: Option<i32>,
}

pub(crate) type Result<T, E = BuildFailure> = std::result::Result<T, E>;

impl BuildFailure {
    /// One that dockerd has no status for.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message).into()
    }

    /// Says what was being done.
    pub(crate) fn during(mut self, what: impl Display) -> Self {
        self.failure.message = format!("{what}: {}", self.failure.message);
        self
    }

    pub(crate) fn line(&self) -> Value {
        let Failure { message, .. } = &self.failure;
        let detail = match self.code {
            Some(code) => json!({ "code": code, "message": message }),
            None => json!({ "message": message }),
        };
        json!({ "errorDetail": detail, "error": message })
    }
}

impl From<Failure> for BuildFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, code: None }
    }
}

impl From<Error> for BuildFailure {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<anyhow::Error> for BuildFailure {
    fn from(error: anyhow::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<berth_dockerfile::Error> for BuildFailure {
    fn from(error: berth_dockerfile::Error) -> Self {
        Failure::bad_request(error.0).into()
    }
}
