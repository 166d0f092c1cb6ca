//! `POST /images/load`: the images of an archive.

use std::sync::Arc;

use berth_image::ImportedImage;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use crate::{
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        transfer,
    },
    image_name::familiar,
    routes::Call,
};

/// Adds the images of a tar, which may be compressed. As with dockerd, a failure is a line of the
/// answer. Layers are not reported one by one.
///
/// # Errors
/// 400 for a platform that cannot be parsed.
pub(in crate::routes) async fn load(call: Call) -> Result<Answer> {
    let platform = Platform::of_document(call.query.get("platform"));
    let engine = call.engine.clone();
    let images = engine.node.host.images.clone();
    let received =
        transfer::receive(call.request.into_body(), move |from| images.receive(from)).await;
    let lines = match platform? {
        // An archive has nothing for it that could be used here.
        Some(platform) if !platform.is_own() => Vec::new(),
        _ => match add(&engine, received).await {
            Ok(loaded) => loaded.iter().flat_map(lines).collect(),
            Err(Failure { message, .. }) => {
                vec![json!({ "errorDetail": { "message": message }, "error": message })]
            }
        },
    };
    let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let text = stream::iter([Ok(Bytes::from(text))]);
    Ok(body::streaming("application/json", text))
}

async fn add(
    engine: &Arc<Engine>,
    received: anyhow::Result<berth_base::error::Result<berth_image::ArchiveReader>>,
) -> Result<Vec<ImportedImage>> {
    let images = &engine.node.host.images;
    let loaded = images.load(received??).await?;
    for loaded in &loaded {
        if let Ok(Some(image)) = images.find(loaded.id.as_str()) {
            engine.publish_image(&image, "load", loaded.id.as_str());
        }
    }
    Ok(loaded)
}

/// What is told of an image.
fn lines(loaded: &ImportedImage) -> Vec<Value> {
    let stream = |text: String| json!({ "stream": text });
    let displaced = loaded.displaced.iter().map(|(tag, id)| {
        let tag = familiar(tag);
        stream(format!(
            "The image {tag} already exists, renaming the old one with ID {id} to empty string\n"
        ))
    });
    let tags = loaded.tags.iter().map(|tag| stream(format!("Loaded image: {}\n", familiar(tag))));
    let mut lines: Vec<Value> = displaced.chain(tags).collect();
    if loaded.tags.is_empty() {
        lines.push(stream(format!("Loaded image ID: {}\n", loaded.id)));
    }
    lines
}
