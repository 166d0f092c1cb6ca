//! `/exec`: commands in running containers.

use http::StatusCode;

use super::Call;
use crate::http::{
    body::Answer,
    error::{Failure, Result},
};

pub(super) async fn create(call: Call, name: &str) -> Result<Answer> {
    let _ = call.engine.containers.find(name)?;
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "exec"))
}

pub(super) async fn start(_: Call, id: &str) -> Result<Answer> {
    Err(Failure::not_found(format!("No such exec instance: {id}")))
}

pub(super) fn resize(_: &Call, id: &str) -> Result<Answer> {
    Err(Failure::not_found(format!("No such exec instance: {id}")))
}

pub(super) fn inspect(_: &Call, id: &str) -> Result<Answer> {
    Err(Failure::not_found(format!("No such exec instance: {id}")))
}
