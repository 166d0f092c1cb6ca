//! What a build is made from: the directory that the client sends as a tar, or that a URL has, and the
//! Dockerfile in it.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use berth_base::{
    blocking::{blocking, spawn_blocking},
    open_in_root::open_in_root,
};
use berth_dockerfile::{Dockerfile, Ignore, MAX_FILE};
use berth_image::decompressed;
use hyper::body::Incoming;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, unlinkat},
    io::Errno,
};

use super::{
    directory::BuildDirectory,
    download,
    failure::{BuildFailure, Result},
    options::Options,
    output::Output,
    source::{Tree, check_path},
};
use crate::{
    archive::{ContainerFiles, ExtractOptions},
    http::{body, error::Failure, transfer},
};

const IGNORE_FILE: &str = ".dockerignore";
const DEFAULT_DOCKERFILE: &str = "Dockerfile";
/// How much of a file tells whether it is text, in bytes.
const PREAMBLE: usize = 100;

#[derive(Debug)]
pub(crate) struct Context {
    /// `None` if there is a Dockerfile only.
    pub tree: Option<Tree>,
    pub dockerfile: Dockerfile,
}

/// Receives the context.
///
/// # Errors
/// In dockerd's words, if it is no tar, has no Dockerfile, or that cannot be parsed.
pub(crate) async fn receive(
    sent: Incoming,
    options: &Options,
    build: &Arc<BuildDirectory>,
    output: &Output,
) -> Result<Context> {
    if options.remote.is_empty() {
        let directory = blocking(|| build.part("context"))?;
        let build = build.clone();
        let extracted = transfer::receive(sent, move |from| extract(from, &directory, &build));
        let extracted = extracted.await?;
        return with_dockerfile(extracted?, &options.dockerfile);
    }
    body::discard(sent).await;
    let remote = &options.remote;
    if remote == "client-session" {
        let text = "experimental session with v1 builder is no longer supported, use builder version \
                    v2 (BuildKit) instead";
        return Err(Failure::bad_request(text).into());
    }
    if is_git(remote) {
        let text = format!(
            "building from a git repository is not supported: clone {remote} and send the directory"
        );
        return Err(Failure::bad_request(text).into());
    }
    if !download::is_url(remote) {
        let text = format!("remoteURL ({remote}) could not be recognized as URL");
        return Err(BuildFailure::new(text));
    }
    from_url(options, build, output).await
}

fn is_git(remote: &str) -> bool {
    let path = remote.split('#').next().unwrap_or_default();
    ["git://", "git@", "github.com/", "ssh://"].iter().any(|start| remote.starts_with(start))
        || download::is_url(remote) && path.ends_with(".git")
}

async fn from_url(
    options: &Options,
    build: &Arc<BuildDirectory>,
    output: &Output,
) -> Result<Context> {
    let place = blocking(|| build.part("download"))?;
    let directory = blocking(|| build.part("context"))?;
    let remote = &options.remote;
    let (file, media_type) = download::context(remote, &place, output)
        .await
        .map_err(|failure| failure.during(format!("error downloading remote context {remote}")))?;
    let text = blocking(|| as_text(&file, &media_type))?;
    if let Some(text) = text {
        let dockerfile = Dockerfile::parse(DEFAULT_DOCKERFILE, &text)?;
        return Ok(Context { tree: None, dockerfile });
    }
    let build = build.clone();
    let extracting = spawn_blocking(move || extract(&mut &file, &directory, &build));
    with_dockerfile(extracting.await.context("extract the context")??, &options.dockerfile)
}

/// The text of a file that is a Dockerfile; `None` for what may be a tar. Servers know the type of few
/// files.
fn as_text(mut file: &File, media_type: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let mut preamble = Vec::new();
    file.take(PREAMBLE as u64).read_to_end(&mut preamble).context("read the context")?;
    io::Seek::rewind(&mut file).context("read the context")?;
    let is_unknown = ["", "application/octet-stream"].contains(&media_type);
    let looks_like_text = !preamble.contains(&0) && str::from_utf8(&preamble).is_ok();
    match media_type.starts_with("text/plain") || is_unknown && looks_like_text {
        true => read_text(file).map(Some),
        false => Ok(None),
    }
}

/// Extracts a tar, which may be compressed. Whoever waits for it may be gone; the directory stays as
/// long as this needs it.
fn extract(from: &mut dyn Read, directory: &Path, _build: &BuildDirectory) -> Result<Tree> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, directory, flags, Mode::empty()).context("open the context")?;
    let tar = decompressed(from)?;
    let files = ContainerFiles::new(root.as_fd(), "build");
    files.extract("/", tar, ExtractOptions::default())?;
    Ok(Tree::Own(Arc::new(root)))
}

/// Reads the Dockerfile of a context. It stays there, unless `.dockerignore` leaves it out: what else
/// that leaves out, clients do not send.
fn with_dockerfile(tree: Tree, name: &str) -> Result<Context> {
    check_path(name)?;
    let opened = open_text(&tree, name).and_then(|found| match found {
        None if name == DEFAULT_DOCKERFILE => open_text(&tree, &name.to_lowercase()),
        found => Ok(found),
    })?;
    let Some(file) = opened else {
        let text = format!("Cannot locate specified Dockerfile: {name}");
        return Err(BuildFailure::new(text));
    };
    let dockerfile = Dockerfile::parse(name, &blocking(|| read_text(&file))?)?;
    blocking(|| leave_out(&tree, name))?;
    Ok(Context { tree: Some(tree), dockerfile })
}

/// Opens a regular file of the context; `None` if there is none of this name.
fn open_text(tree: &Tree, name: &str) -> Result<Option<File>> {
    let path = name.trim_start_matches('/');
    let open = |flags| blocking(|| open_in_root(tree, Path::new(path), flags));
    let found: OwnedFd = match open(OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found.with_context(|| format!("open {name}"))?,
    };
    let kind = FileType::from_raw_mode(fstat(&found).context("stat")?.st_mode);
    // Nothing else is opened: a FIFO or a device might do something then.
    if kind != FileType::RegularFile {
        return Err(BuildFailure::new(format!("{name} is no regular file")));
    }
    Ok(Some(File::from(open(OFlags::RDONLY).with_context(|| format!("open {name}"))?)))
}

/// Reads a file, or of one that is too long so much that this shows.
fn read_text(file: &File) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut text).context("read")?;
    Ok(text)
}

fn leave_out(tree: &Tree, dockerfile: &str) -> Result<()> {
    let Some(file) = open_text(tree, IGNORE_FILE)? else { return Ok(()) };
    let ignored = Ignore::parse(&read_text(&file)?)
        .map_err(|error| BuildFailure::from(error).during("error reading .dockerignore"))?;
    for name in [IGNORE_FILE, dockerfile] {
        if !ignored.matches(name) {
            continue;
        }
        let path = Path::new(name.trim_start_matches('/'));
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let directory = open_in_root(tree, directory, OFlags::PATH | OFlags::DIRECTORY);
        let directory = directory.context("open the context")?;
        unlinkat(&directory, name, AtFlags::empty()).context("leave out what is ignored")?;
    }
    Ok(())
}
