//! `POST /images/create?fromSrc=-`: a tar becomes an image of one layer.

use std::sync::Arc;

use anyhow::Context;
use berth_base::clock::now;
use berth_dockerfile::{Config, with_changes};
use berth_image::ImageToWrite;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;

use crate::{
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        transfer,
    },
    image_name::{familiar, tag_reference},
    images::{Imported, imported},
    routes::Call,
    time::rfc3339_nano,
};

/// What is made of a tar.
struct Asked {
    /// In full. `None` for an image without a name.
    name: Option<String>,
    comment: String,
    platform: Option<Platform>,
    config: Config,
}

/// Adds an image whose files are those of a tar, which may be compressed. Unlike dockerd this fetches
/// no tar by itself: it would ask hosts that only the node can reach on behalf of a client.
///
/// # Errors
/// 400 for what cannot be a name, a platform or a change, and for the URL of a tar; what the tar says.
pub(in crate::routes) async fn import(call: Call) -> Result<Answer> {
    let Call { engine, query, request, .. } = call;
    let platform = Platform::parse(query.get("platform"))?;
    let name = tag_reference(query.get("repo"), query.get("tag"))?;
    let source = query.get("fromSrc");
    if source != "-" {
        return Err(Failure::bad_request(format!(
            "{source:?} is not fetched: download it, and import the file"
        )));
    }
    if let Some(platform) = platform.as_ref().filter(|platform| !platform.is_linux()) {
        return Err(Failure::bad_request(format!("operating system is not supported: {platform}")));
    }
    let changes: Vec<String> = query.all("changes").map(str::to_owned).collect();
    let config = with_changes(Config::default(), &changes)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let comment = match query.get("message") {
        "" => format!("Imported from {source}"),
        message => message.to_owned(),
    };
    let images = engine.node.host.images.clone();
    let written =
        transfer::receive(request.into_body(), move |tar| images.write_tar(tar)).await??;
    let asked = Asked { name, comment, platform, config };
    // In a task of its own: a client that goes away must not leave a layer without its image.
    let making = tokio::spawn(async move { make(&engine, written, asked).await });
    let id = making.await.context("import")??;
    let line = format!("{}\r\n", json!({ "status": id }));
    Ok(body::streaming("application/json", stream::iter([Ok(Bytes::from(line))])))
}

/// Makes the image, and returns its id once a power loss cannot take it any more.
async fn make(
    engine: &Arc<Engine>,
    layer: berth_image::WrittenLayer,
    asked: Asked,
) -> Result<String> {
    let images = &engine.node.host.images;
    let config = imported(&Imported {
        comment: &asked.comment,
        config: &asked.config,
        platform: asked.platform.as_ref(),
        diff_id: &layer.diff_id,
        created: &rfc3339_nano(now()),
    })?;
    let names: Vec<String> = asked.name.into_iter().collect();
    let written = ImageToWrite { parent: None, layers: vec![layer], config, names: names.clone() };
    let image = images.write_image(written).await?;
    images.make_durable().await?;
    let id = image.id.to_string();
    for name in &names {
        engine.publish_image(&image, "tag", familiar(name));
    }
    engine.publish_image(&image, "import", &id);
    Ok(id)
}
