//! `POST /auth`: whether a registry accepts credentials. The client keeps them; berth does not.

use berth_base::error::{Error, Kind};
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::{
    api::{registry::RegistryAuth, without_nulls},
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
};

/// # Errors
/// 500 if the registry does not accept them, as with dockerd, or does not answer; 400 for what is no
/// address of one.
pub(super) async fn login(call: Call) -> Result<Answer> {
    body::check_json(&call.request)?;
    let value: Value = body::parse(call.request.into_body()).await?;
    let auth: RegistryAuth = serde_json::from_value(without_nulls(value, &[]))
        .map_err(|error| Failure::bad_request(format!("invalid JSON: {error}")))?;
    call.engine.node.host.images.login(auth.into()).await.map_err(refused)?;
    Ok(body::ok(&json!({ "IdentityToken": "", "Status": "Login Succeeded" })))
}

/// In dockerd's words, where the registry has refused: the error is `URL: STATUS`, and perhaps more.
fn refused(error: Error) -> Failure {
    match (error.kind, error.message.split_once(": ")) {
        (Kind::Unauthenticated, Some((url, status))) => {
            let status = status.split_once(": ").map_or(status, |(status, _)| status);
            Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("login attempt to {url} failed with status: {status}"),
            )
        }
        _ => error.into(),
    }
}
