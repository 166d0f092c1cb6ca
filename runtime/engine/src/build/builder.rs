//! What a build works with, and what its steps have in common.

use std::sync::Arc;

use berth_base::{
    blocking::blocking,
    observe::{step as observed, steps::docker_build},
};
use berth_dockerfile::{BuildArgs, Config};
use berth_image::{Image, WrittenLayer};

use super::{
    base,
    cache::{self, Sources},
    containers::Containers,
    directory::BuildDirectory,
    failure::Result,
    image::{self, Done},
    layer::ImageFiles,
    options::Options,
    output::Output,
    source::Tree,
    stage::{Stage, Stages},
};
use crate::{container::platform::Platform, engine::Engine};

/// A build under way.
#[derive(Debug)]
pub(crate) struct Builder {
    pub engine: Arc<Engine>,
    pub options: Arc<Options>,
    pub directory: Arc<BuildDirectory>,
    pub output: Output,
    pub containers: Arc<Containers>,
    /// What the client has sent, if it has sent more than a Dockerfile.
    pub context: Option<Tree>,
    pub escape: char,
    /// The steps that need not be done again.
    pub cached: Sources,
    /// With those before the first `FROM`, and what the stages that are complete have consumed.
    pub arguments: BuildArgs,
    pub stages: Stages,
}

impl Builder {
    /// Finds an image, or pulls it.
    ///
    /// # Errors
    /// As `base::image`.
    pub(super) async fn image(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Arc<Image>> {
        base::image(&self.engine, &self.options, name, platform, &self.output).await
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
