//! The life of a build, from its request to the names of its image.

use std::sync::Arc;

use berth_base::{
    blocking::blocking,
    observe::{step, step_blocking, steps::docker_build},
};
use berth_dockerfile::BuildArgs;
use berth_image::Image;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    builder::Builder,
    cache::Sources,
    containers::Containers,
    context,
    directory::BuildDirectory,
    failure::{BuildFailure, Result},
    options::Options,
    output::Output,
    stage::Stages,
};
use crate::{engine::Engine, http::client::Presence, image_name::familiar};

/// A build that runs, for its client: lines, and in the end the image.
pub(crate) struct Started {
    pub lines: mpsc::Receiver<Value>,
    pub ended: JoinHandle<Result<Arc<Image>>>,
}

/// Starts a build. It ends when the client is gone.
pub(crate) fn start(
    engine: Arc<Engine>,
    options: Options,
    context: Incoming,
    client: Option<Presence>,
) -> Started {
    let (output, lines) = Output::new();
    let ended = tokio::spawn(run(engine, Arc::new(options), context, client, output));
    Started { lines, ended }
}

async fn run(
    engine: Arc<Engine>,
    options: Arc<Options>,
    context: Incoming,
    client: Option<Presence>,
    output: Output,
) -> Result<Arc<Image>> {
    let containers = Arc::new(Containers::default());
    let directory = Arc::new(blocking(|| BuildDirectory::make(engine.node.host.layout.clone()))?);
    let cancellable = engine.builds.begin(&options.id);
    let built = {
        let builder = Builder {
            engine: engine.clone(),
            options: options.clone(),
            directory: directory.clone(),
            output: output.clone(),
            containers: containers.clone(),
            context: None,
            escape: '\\',
            cached: Sources::of(&engine, &options.cache_from),
            arguments: BuildArgs::new(options.args.clone()),
            stages: Stages::default(),
        };
        tokio::select! {
            built = build(builder, context) => built,
            () = gone(client) => Err(cancelled()),
            () = output.closed() => Err(cancelled()),
            () = cancellable.cancelled() => Err(cancelled()),
        }
    };
    // What is left of them was under way.
    containers.discard(&engine).await;
    built
}

fn cancelled() -> BuildFailure {
    BuildFailure::new("Build cancelled")
}

async fn gone(client: Option<Presence>) {
    match client {
        Some(client) => client.gone().await,
        None => std::future::pending().await,
    }
}

async fn build(builder: Builder, context: Incoming) -> Result<Arc<Image>> {
    let (engine, options, output) =
        (builder.engine.clone(), builder.options.clone(), builder.output.clone());
    let receiving = context::receive(context, &options, &builder.directory, &output);
    let context = step(docker_build::CONTEXT, receiving).await?;
    let image = builder.build(context).await?;
    for name in &options.tags {
        step_blocking(docker_build::TAG, || {
            blocking(|| engine.node.host.images.tag(&image, name))
        })?;
        engine.publish_image(&image, "tag", familiar(name));
    }
    // What a client is told outlives a power loss.
    engine.node.host.images.make_durable().await?;
    output.text(format!("Successfully built {}\n", &image.id.hex()[..12])).await;
    for name in &options.tags {
        output.text(format!("Successfully tagged {}\n", familiar(name))).await;
    }
    Ok(image)
}
