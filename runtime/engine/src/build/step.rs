//! One step: what it does, and the image that it makes.

use std::sync::Arc;

use anyhow::Context;
use berth_base::{
    blocking::spawn_blocking,
    id,
    observe::{step as observed, steps::docker_build},
};
use berth_dockerfile::{Config, Effect, Instruction};

use super::{
    builder::{Builder, commit, is_cached, layer},
    failure::Result,
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
