//! One step: what it does, and the image that it makes.

use std::sync::Arc;

use anyhow::Context;
use berth_base::{
    blocking::{blocking, spawn_blocking},
    id,
    observe::{step as observed, steps::docker_build},
};
use berth_dockerfile::{Config, Effect, Instruction};
use berth_image::WrittenLayer;

use super::{
    builder::Builder,
    cache,
    failure::Result,
    image::{self, Done},
    layer::ImageFiles,
    run,
    stage::Stage,
    transfer,
};
use crate::archive::{Place, make_directory};

/// Does an instruction.
///
/// # Errors
/// In dockerd's words.
pub(super) async fn step(
    builder: &Builder,
    stage: &mut Stage,
    instruction: &Instruction,
) -> Result<()> {
    let instruction = instruction.expanded(builder.escape, &stage.state.variables())?;
    if let Some(note) = stage.state.note(&instruction) {
        builder.output.text(note).await;
    }
    match stage.state.apply(&instruction)? {
        Effect::Commit { probe } => change_config(builder, stage, &probe).await,
        Effect::Workdir { probe } => make_working_directory(builder, stage, &probe).await,
        Effect::Run { probe, executed } => run_command(builder, stage, &probe, executed).await,
        Effect::Transfer => transfer::transfer(builder, stage, &instruction).await,
    }
}

/// Whether the step was done before; then the stage goes on with its image.
pub(super) async fn is_cached(builder: &Builder, stage: &mut Stage, probe: &Config) -> bool {
    let looks = stage.is_cached && builder.options.uses_cache;
    let Builder { engine, cached, .. } = builder;
    let found = looks.then(|| cache::find(engine, cached, stage.image.as_deref(), probe));
    let found = found.flatten();
    stage.is_cached = found.is_some();
    if let Some(image) = found {
        builder.output.text(" ---> Using cache\n").await;
        stage.go_on(image);
    }
    stage.is_cached
}

/// Makes the image of a step that has been done.
pub(super) async fn commit(
    builder: &Builder,
    stage: &mut Stage,
    probe: &Config,
    layer: Option<WrittenLayer>,
    container: &str,
) -> Result<()> {
    let done = Done {
        parent: stage.image.clone(),
        layer,
        config: &stage.state.config,
        step: probe,
        container,
        author: &stage.state.author,
    };
    let image = observed(docker_build::COMMIT, image::write(&builder.engine, done)).await?;
    if stage.image.is_none() {
        blocking(|| cache::note_upon_nothing(&builder.engine, &image))?;
    }
    stage.go_on(image);
    Ok(())
}

/// Makes a layer of what was written over the files of an image.
pub(super) async fn layer(builder: &Builder, files: &ImageFiles) -> Result<Option<WrittenLayer>> {
    let images = &builder.engine.node.host.images;
    Ok(images.write_upper(files.written()?).await?)
}

async fn change_config(builder: &Builder, stage: &mut Stage, probe: &Config) -> Result<()> {
    if is_cached(builder, stage, probe).await {
        return Ok(());
    }
    let container = announce(builder).await;
    commit(builder, stage, probe, None, &container).await?;
    dismiss(builder, &container).await;
    Ok(())
}

async fn make_working_directory(
    builder: &Builder,
    stage: &mut Stage,
    probe: &Config,
) -> Result<()> {
    if is_cached(builder, stage, probe).await {
        return Ok(());
    }
    let container = announce(builder).await;
    let path = stage.state.config.working_dir.clone();
    let files = ImageFiles::open(&builder.engine, &builder.directory, stage.layers()).await?;
    let files = Arc::new(files);
    let making = {
        let files = files.clone();
        spawn_blocking(move || make_directory(Place { root: files.root(), path: &path }, (0, 0)))
    };
    making.await.context("make the working directory")??;
    let layer = layer(builder, &files).await?;
    commit(builder, stage, probe, layer, &container).await?;
    dismiss(builder, &container).await;
    Ok(())
}

async fn run_command(
    builder: &Builder,
    stage: &mut Stage,
    probe: &Config,
    executed: Config,
) -> Result<()> {
    if is_cached(builder, stage, probe).await {
        return Ok(());
    }
    let Builder { engine, output, options, .. } = builder;
    let container = run::make(engine, executed, &options.host, output).await?;
    builder.containers.add(container.clone());
    observed(docker_build::RUN, run::run(engine, &container, output)).await?;
    let layer = run::layer(engine, &container).await?;
    commit(builder, stage, probe, layer, &container.id).await
}

/// Says that the step has a container, as dockerd does of each. One in which nothing runs is not made
/// here, and its id is nobody's.
async fn announce(builder: &Builder) -> String {
    let container = id::random_hex(32);
    builder.output.text(format!(" ---> Running in {}\n", &container[..12])).await;
    container
}

/// Says that it is gone.
async fn dismiss(builder: &Builder, container: &str) {
    if builder.options.removes {
        let text = format!(" ---> Removed intermediate container {}\n", &container[..12]);
        builder.output.text(text).await;
    }
}
