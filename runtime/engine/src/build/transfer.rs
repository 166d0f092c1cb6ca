//! `COPY` and `ADD`: from where their sources come, and the step that they make.

use std::{
    fs::{self, Permissions},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    sync::Arc,
};

use anyhow::Context;
use berth_base::{
    blocking::{blocking, spawn_blocking},
    observe::{step as observed, steps::docker_build},
};
use berth_dockerfile::{Heredoc, Instruction, Sources};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{
    builder::{Builder, commit, is_cached, layer},
    copy::{self, Copying},
    download,
    failure::{BuildFailure, Result},
    layer::ImageFiles,
    source::{Source, Tree},
    stage::{Named, Stage},
};

/// The mode of a file that stands in the Dockerfile.
const HEREDOC_MODE: u32 = 0o644;

/// What the two instructions have in common.
struct Asked<'a> {
    name: &'static str,
    sources: &'a Sources,
    chown: &'a str,
    /// A stage or an image; empty for the context.
    from: &'a str,
    /// `sha256:...` of a URL's file.
    checksum: &'a str,
    is_add: bool,
}

impl<'a> Asked<'a> {
    fn of(instruction: &'a Instruction) -> Option<Self> {
        match instruction {
            Instruction::Copy(copy) => Some(Self {
                name: "COPY",
                sources: &copy.sources,
                chown: &copy.chown,
                from: &copy.from,
                checksum: "",
                is_add: false,
            }),
            Instruction::Add(add) => Some(Self {
                name: "ADD",
                sources: &add.sources,
                chown: &add.chown,
                from: "",
                checksum: &add.checksum,
                is_add: true,
            }),
            _ => None,
        }
    }
}

/// Copies what a `COPY` or `ADD` names.
///
/// # Errors
/// In dockerd's words.
pub(super) async fn transfer(
    builder: &Builder,
    stage: &mut Stage,
    instruction: &Instruction,
) -> Result<()> {
    let asked = Asked::of(instruction).context("neither COPY nor ADD")?;
    let tree = tree(builder, &asked).await?;
    let sources = sources(builder, &asked, tree)
        .await
        .map_err(|failure| failure.during(format!("{} failed", asked.name)))?;
    let destination = &asked.sources.destination;
    if sources.len() > 1 && !destination.ends_with('/') {
        let text = format!(
            "When using {} with more than one source file, the destination must be a directory and \
             end with a /",
            asked.name
        );
        return Err(BuildFailure::new(text));
    }
    let hash = copy::hash(&sources);
    let probe = stage.state.transfer_probe(asked.name, asked.chown, &hash, destination);
    if is_cached(builder, stage, &probe).await {
        return Ok(());
    }
    let files = ImageFiles::open(&builder.engine, &builder.directory, stage.layers()).await?;
    let files = Arc::new(files);
    let copying = Copying {
        sources,
        destination: copy::destination(&stage.state.config.working_dir, destination),
        chown: asked.chown.to_owned(),
        keeps_owners: !asked.from.is_empty() && asked.chown.is_empty(),
        unpacks: asked.is_add,
    };
    let copied = {
        let files = files.clone();
        let copying = spawn_blocking(move || copying.perform(files.root()));
        async { copying.await.context("copy files")? }
    };
    observed(docker_build::COPY, copied).await?;
    let layer = layer(builder, &files).await?;
    commit(builder, stage, &probe, layer, "").await
}

/// Where the files come from; `None` if there is no context.
async fn tree(builder: &Builder, asked: &Asked<'_>) -> Result<Option<Tree>> {
    if asked.from.is_empty() {
        return Ok(builder.context.clone());
    }
    let named =
        |failure: BuildFailure| failure.during(format!("invalid from flag value {}", asked.from));
    let image = match builder.stages.find(asked.from).map_err(named)? {
        Named::Stage(image) => image,
        Named::Other => {
            let platform = builder.options.platform.as_ref();
            Some(builder.image(asked.from, platform).await.map_err(named)?)
        }
    };
    let layers = image.as_ref().map_or(&[][..], |image| &image.layers);
    let files = ImageFiles::open(&builder.engine, &builder.directory, layers).await?;
    Ok(Some(Tree::Image(Arc::new(files))))
}

async fn sources(builder: &Builder, asked: &Asked<'_>, tree: Option<Tree>) -> Result<Vec<Source>> {
    let Sources { paths, contents, destination } = asked.sources;
    let mut sources = Vec::new();
    for path in paths {
        if download::is_url(path) {
            if !asked.is_add {
                return Err(BuildFailure::new("source can't be a URL for COPY"));
            }
            let directory = blocking(|| builder.directory.part("download"))?;
            let names_file = destination.ends_with('/');
            let source = download::download(path, names_file, &directory, &builder.output).await?;
            download::check(&directory.join(&source.path), asked.checksum)?;
            sources.push(source);
            continue;
        }
        let tree = tree.clone().ok_or_else(|| BuildFailure::new("missing build context"))?;
        let path = path.clone();
        let found =
            spawn_blocking(move || tree.find(&path)).await.context("read the sources")??;
        sources.extend(found);
    }
    for content in contents {
        sources.push(blocking(|| written(builder, content))?);
    }
    match sources.is_empty() {
        true => Err(BuildFailure::new("no source files were specified")),
        false => Ok(sources),
    }
}

/// A file that stands in the Dockerfile.
fn written(builder: &Builder, heredoc: &Heredoc) -> Result<Source> {
    let directory = builder.directory.part("heredoc")?;
    let path = directory.join(&heredoc.name);
    fs::write(&path, heredoc.text()).context("write a heredoc")?;
    fs::set_permissions(&path, Permissions::from_mode(HEREDOC_MODE)).context("chmod")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &directory, flags, Mode::empty()).context("open a heredoc")?;
    let hash = crate::archive::fingerprint(root.as_fd(), &heredoc.name)?;
    let name = heredoc.name.clone();
    let tree = Tree::Own(Arc::new(root));
    Ok(Source { tree, path: name, hash, is_downloaded: true })
}
