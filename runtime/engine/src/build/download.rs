//! `ADD` of a URL.

use std::{
    fs::File,
    io::Write,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use berth_base::blocking::blocking;
use futures_util::TryStreamExt;
use reqwest::{Client, Response, Url, header};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::json;

use super::{
    failure::{BuildFailure, Result},
    output::Output,
    source::{Source, Tree},
};
use crate::archive;

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest file, in bytes.
const MAX_FILE: u64 = 16 << 30;
/// How much of a refusal is repeated, in bytes.
const MAX_REFUSAL: usize = 4 << 10;
/// Bytes between two reports of progress.
const PROGRESS: u64 = 1 << 20;
/// The name of what the URL gives none.
const UNNAMED: &str = "__unnamed__";

/// Whether a source is a URL.
pub(crate) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Downloads a file into an empty directory. `is_directory` says whether its name in the image is that
/// of the URL.
///
/// # Errors
/// In dockerd's words, as far as they are not its HTTP library's.
pub(crate) async fn download(
    url: &str,
    is_directory: bool,
    directory: &Path,
    output: &Output,
) -> Result<Source> {
    let parsed = Url::parse(url).map_err(|error| BuildFailure::new(format!("{url}: {error}")))?;
    let response = get(&parsed).await?;
    let name = name(&parsed, &response);
    if name.is_none() && is_directory {
        let text = format!("cannot determine filename for source {url}");
        return Err(BuildFailure::new(text));
    }
    let name = name.unwrap_or_else(|| UNNAMED.to_owned());
    let modified = response.headers().get(header::LAST_MODIFIED);
    let modified = modified.and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    let path = directory.join(&name);
    receive(response, &path, output).await.with_context(|| format!("GET {url}"))?;
    output.text("\n").await;
    blocking(|| {
        let file = File::options().write(true).open(&path).context("open the download")?;
        file.set_modified(modified.unwrap_or(SystemTime::UNIX_EPOCH)).context("set its time")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, directory, flags, Mode::empty()).context("open the download")?;
        let hash = archive::fingerprint(root.as_fd(), &name)?;
        let tree = Tree::Own(Arc::new(root));
        Ok(Source { tree, path: name, hash, is_downloaded: true })
    })
}

/// Refuses a file that has another digest than was asked for, if one was.
///
/// # Errors
/// It has.
pub(crate) fn check(path: &Path, expected: &str) -> Result<()> {
    if expected.is_empty() {
        return Ok(());
    }
    let found = blocking(|| archive::sha256(path))?;
    match found == expected {
        true => Ok(()),
        false => {
            let text = format!("digest mismatch {found}: {expected}");
            Err(BuildFailure::new(text))
        }
    }
}

/// Downloads a context, and returns it with what the server says that it is.
///
/// # Errors
/// As `download`.
pub(crate) async fn context(
    url: &str,
    directory: &Path,
    output: &Output,
) -> Result<(File, String)> {
    let parsed = Url::parse(url).map_err(|error| BuildFailure::new(format!("{url}: {error}")))?;
    let response = get(&parsed).await?;
    let media_type = response.headers().get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.to_owned();
    let path = directory.join("context");
    receive(response, &path, output).await.with_context(|| format!("GET {url}"))?;
    let file = blocking(|| File::open(&path)).context("open the context")?;
    Ok((file, media_type))
}

async fn get(url: &Url) -> Result<Response> {
    let client = Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build();
    let client = client.context("make an HTTP client")?;
    let sent = client.get(url.clone()).send().await;
    let mut response =
        sent.map_err(|error| BuildFailure::new(format!("Get \"{url}\": {}", cause(&error))))?;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await
        && body.len() < MAX_REFUSAL
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(MAX_REFUSAL);
    let body = String::from_utf8_lossy(&body);
    Err(BuildFailure::new(format!("failed to GET {url} with status {status}: {}", body.trim())))
}

/// The innermost reason, which says most.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The end of the URL's path, else what the server calls it.
fn name(url: &Url, response: &Response) -> Option<String> {
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
    let disposition = response.headers().get(header::CONTENT_DISPOSITION);
    let disposition = disposition.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = disposition.split(';').find_map(|part| part.trim().strip_prefix("filename="));
    let candidates = [Some(path.as_str()), given.map(|name| name.trim_matches('"'))];
    candidates
        .into_iter()
        .flatten()
        .filter(|path| !path.ends_with('/'))
        .filter_map(|path| Path::new(path).file_name()?.to_str())
        .find(|name| !name.is_empty())
        .map(str::to_owned)
}

async fn receive(response: Response, path: &Path, output: &Output) -> anyhow::Result<()> {
    let total = response.content_length().unwrap_or_default();
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let mut file = blocking(|| options.open(path))?;
    let mut chunks = response.bytes_stream();
    let (mut received, mut told) = (0, 0);
    while let Some(chunk) = chunks.try_next().await? {
        received += chunk.len() as u64;
        anyhow::ensure!(received <= MAX_FILE, "the file is larger than 16 GiB");
        blocking(|| file.write_all(&chunk))?;
        if received - told >= PROGRESS || received == total {
            told = received;
            let detail = json!({ "current": received, "total": total });
            output.line(json!({ "status": "Downloading", "progressDetail": detail })).await;
        }
    }
    Ok(())
}
