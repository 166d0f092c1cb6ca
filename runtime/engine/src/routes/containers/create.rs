//! `POST /containers/create`.

use http::StatusCode;
use serde_json::json;

use super::Call;
use crate::{
    api::create::CreateBody,
    container::{create as made, platform::Platform},
    http::{
        body::{self, Answer},
        error::Result,
    },
};

pub(in crate::routes) async fn create(call: Call) -> Result<Answer> {
    let Call { engine, query, request, .. } = call;
    body::check_json(&request)?;
    let bytes = body::read(request.into_body()).await?;
    let asked = CreateBody::parse(&bytes)?;
    let platform = Platform::parse(query.get("platform"))?;
    let (container, warnings) = made::create(&engine, query.get("name"), platform.as_ref(), asked)?;
    engine.publish(&container, "create", json!({}));
    let answer = json!({ "Id": container.id, "Warnings": warnings });
    Ok(body::json(StatusCode::CREATED, &answer))
}
