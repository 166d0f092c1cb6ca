//! `POST /commit`: a container becomes an image.

use std::sync::Arc;

use anyhow::Context;
use berth_dockerfile::with_changes;
use http::StatusCode;
use serde_json::json;

use super::Call;
use crate::{
    api::create::{ContainerConfig, CreateBody},
    container::{life, merge::merge, object::Container},
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    image_name::{familiar, tag_reference},
    images::{Committed, commit as commit_to},
};

/// Makes an image of a container, running or not, which is paused meanwhile unless the client does not
/// want that.
///
/// # Errors
/// 400 for what cannot be a name or a config, 404 for an unknown container, 409 for one that is being
/// removed.
pub(super) async fn commit(call: Call) -> Result<Answer> {
    let Call { engine, query, request, .. } = call;
    body::check_json(&request)?;
    let config = CreateBody::config_of(&body::read(request.into_body()).await?)?;
    let name = tag_reference(query.get("repo"), query.get("tag"))?;
    let container = engine.containers.find(query.get("container"))?;
    let changes: Vec<String> = query.all("changes").map(str::to_owned).collect();
    let asked = Committed {
        author: query.get("author").to_owned(),
        comment: query.get("comment").to_owned(),
        config: config_of(&container, config, &changes)?,
        name,
    };
    let pauses = query.get("pause").is_empty() || query.flag("pause");
    // In a task of its own: a container must not stay paused because a client has gone.
    let committing = tokio::spawn(async move {
        let making = make(&engine, &container, &asked);
        match pauses {
            true => life::pause_during(&engine, &container, making).await,
            false => making.await,
        }
    });
    let id = committing.await.context("commit")??;
    Ok(body::json(StatusCode::CREATED, &json!({ "Id": id })))
}

/// The config of the image: that of the request or else the container's, with the changes, and then
/// with what is left to the container.
fn config_of(
    container: &Container,
    asked: Option<ContainerConfig>,
    changes: &[String],
) -> Result<ContainerConfig> {
    let own = container.record().config.clone();
    let mut config = with_changes(asked.unwrap_or_else(|| own.clone()), changes)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    merge(&mut config, own);
    Ok(config)
}

/// Makes the image, and returns its id once a power loss cannot take it any more.
async fn make(engine: &Arc<Engine>, container: &Container, asked: &Committed) -> Result<String> {
    let image = commit_to(engine, container, asked).await?;
    engine.node.host.images.make_durable().await?;
    let id = image.id.to_string();
    engine.publish_image(&image, "create", &id);
    let name = asked.name.as_deref().map(familiar).unwrap_or_default();
    if !name.is_empty() {
        engine.publish_image(&image, "tag", name);
    }
    let told = json!({ "comment": asked.comment, "imageID": id, "imageRef": name });
    engine.publish(container, "commit", told);
    Ok(id)
}
