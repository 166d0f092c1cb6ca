//! `POST /images/load`: the images of an archive.

use std::sync::Arc;

use berth_image::{ArchiveReader, ImportedImage, LayerStep, watch};
use bytes::Bytes;
use futures_util::{future::join, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        transfer,
    },
    image_name::familiar,
    progress,
    routes::Call,
};

/// How many lines wait for a client.
const WAITING: usize = 64;

/// Adds the images of a tar, which may be compressed. As with dockerd, a failure is a line of the
/// answer; unless the client says `quiet`, so is how far each layer has come that was not here.
///
/// # Errors
/// 400 for a platform that cannot be parsed.
pub(in crate::routes) async fn load(call: Call) -> Result<Answer> {
    let platform = Platform::of_document(call.query.get("platform"));
    let engine = call.engine.clone();
    let images = engine.node.host.images.clone();
    let is_quiet = call.query.flag("quiet");
    let received =
        transfer::receive(call.request.into_body(), move |from| images.receive(from)).await;
    let (lines, receiver) = mpsc::channel(WAITING);
    match platform? {
        // An archive has nothing for it that could be used here.
        Some(platform) if !platform.is_own() => drop(lines),
        // It goes on if the client goes away.
        _ => drop(tokio::spawn(async move {
            let tells = (!is_quiet).then_some(&lines);
            let last = match add(&engine, received, tells).await {
                Ok(loaded) => loaded.iter().flat_map(loaded_lines).collect(),
                Err(Failure { message, .. }) => vec![progress::failed(&message)],
            };
            for line in last {
                let _ = lines.send(line).await;
            }
        })),
    }
    let lines = stream::unfold(receiver, |mut receiver| async {
        let line: Value = receiver.recv().await?;
        Some((Ok(Bytes::from(format!("{line}\r\n"))), receiver))
    });
    Ok(body::streaming("application/json", lines))
}

/// Loads the images, and returns once a power loss cannot take them any more.
async fn add(
    engine: &Arc<Engine>,
    received: anyhow::Result<berth_base::error::Result<ArchiveReader>>,
    lines: Option<&mpsc::Sender<Value>>,
) -> Result<Vec<ImportedImage>> {
    let images = &engine.node.host.images;
    let (watched, mut layers) = watch();
    let telling = async {
        while let Some(layer) = layers.recv().await {
            if let (Some(lines), LayerStep::Downloading { received, size }) = (lines, layer.step) {
                let line = progress::line(&layer.blob, "Loading layer", Some((received, size)));
                // Nobody may be there any more.
                let _ = lines.send(line).await;
            }
        }
    };
    // The reports end with the load.
    let (loaded, ()) = join(images.load(received??, watched), telling).await;
    let loaded = loaded?;
    images.make_durable().await?;
    for loaded in &loaded {
        if let Ok(Some(image)) = images.find(loaded.id.as_str()) {
            engine.publish_image(&image, "load", loaded.id.as_str());
        }
    }
    Ok(loaded)
}

/// What is told of an image.
fn loaded_lines(loaded: &ImportedImage) -> Vec<Value> {
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
