//! One repository of a registry: fetches manifests and blobs from its endpoints, one endpoint after
//! the other, and retries what may succeed later.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use berth_base::error::{Error, Kind, Result};
use reqwest::{
    Method, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    client::{Clients, Purpose},
    hosts,
    response::{
        explained_error, is_transient, read_document, retry_after, status_error, unavailable,
    },
    server::{Access, Request, Server},
};
use crate::{credentials::Credentials, digest::Digest, progress::Watched, reference::Reference};

/// All media types of manifests. If one is missing here, a registry may convert the manifest to an
/// older type, or respond with 404.
const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json",
);
/// How many pages of tags are read.
const MAX_PAGES: usize = 1000;
const NO_SERVER: &str = "no endpoint of the registry serves pulls";
/// Attempts at one endpoint, if it responds with 429 or 5xx or the connection breaks.
const ATTEMPTS: u32 = 3;
/// The pause before the second attempt. It doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// If an endpoint asks for a longer pause, the next one is tried instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A repository, its endpoints, and the credentials of one pull.
#[derive(Debug)]
pub(crate) struct Repository {
    name: String,
    credentials: Credentials,
    servers: Vec<Server>,
    /// Indices of servers that turned out to be slow. They are asked last.
    slow: Mutex<BTreeSet<usize>>,
    pub progress: Progress,
}

/// The progress of one pull, in bytes of all its downloads together.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub received: AtomicU64,
    /// The sizes of the layers whose download has begun.
    pub expected: AtomicU64,
    pub watched: Watched,
}

/// The response to a request for a range of a blob.
#[derive(Debug)]
pub(super) struct BlobResponse {
    pub response: Response,
    /// Whether it is a range (206) and not the whole blob (200).
    pub is_partial: bool,
    /// Whether the server supports ranges.
    pub knows_ranges: bool,
    /// Offset of the first byte within the blob.
    pub starts_at: u64,
    /// The server that responded, for `Repository::avoid`.
    pub server: usize,
}

impl Repository {
    /// Reads the configuration for the registry of `reference`. Blocks.
    ///
    /// # Errors
    /// `Internal` if the configuration or a certificate is not valid.
    pub(crate) fn open(
        config_path: &Path,
        clients: &Clients,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Self> {
        let mut servers = Vec::new();
        for endpoint in hosts::endpoints(config_path, &reference.host)? {
            servers.push(Server::new(endpoint, clients, Purpose::Pull)?);
        }
        Ok(Self {
            name: reference.repository.clone(),
            credentials,
            servers,
            slow: Mutex::default(),
            progress: Progress::default(),
        })
    }

    /// Asks the registry itself, and none of its mirrors, whether it accepts credentials.
    ///
    /// # Errors
    /// `Unauthenticated` if it does not, `RegistryUnavailable` if it does not answer.
    pub(crate) async fn login(self) -> Result<()> {
        let api = Self { name: String::new(), ..self };
        let registry = api.servers.last().ok_or_else(|| unavailable(NO_SERVER.to_owned()))?;
        let request = Request::new(Method::GET, String::new());
        api.request_from(registry, &request).await.map(drop)
    }

    /// The tags that the repository has, in the registry's order.
    ///
    /// # Errors
    /// As for `manifest`; `FailedPrecondition` if there are too many.
    pub(crate) async fn tags(&self) -> Result<Vec<String>> {
        let mut tags = Vec::new();
        let mut path = "tags/list".to_owned();
        for _ in 0..MAX_PAGES {
            let (_, response) = self.request(Request::new(Method::GET, path), true).await?;
            let next = next_page(response.headers());
            let page: Tags = serde_json::from_slice(&read_document(response).await?)
                .map_err(|error| Error::precondition(format!("list of tags: {error}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(tags) };
            path = format!("tags/list?{next}");
        }
        Err(Error::precondition(format!("{}: more than {MAX_PAGES} pages of tags", self.name)))
    }

    /// Fetches a manifest or index by tag or digest. Returns its media type and its bytes, which
    /// are verified if `target` is a digest.
    ///
    /// # Errors
    /// `NotFound`, `Unauthenticated`, `PermissionDenied` or `RegistryUnavailable`, by the status of
    /// the response; `Internal` if the content does not match the digest.
    pub(crate) async fn manifest(&self, target: &str) -> Result<(String, Vec<u8>)> {
        let digest = Digest::parse(target).ok();
        let request = manifest_request(Method::GET, target);
        let (_, response) = self.request(request, digest.is_none()).await?;
        let media_type = media_type(response.headers());
        let bytes = read_document(response)
            .await
            .map_err(|error| error.during(format!("manifest {target}")))?;
        // For a tag there is nothing to verify against; TLS and signatures have to do.
        if let Some(digest) = digest {
            verify(&bytes, &digest)?;
        }
        Ok((media_type, bytes))
    }

    /// The digest of the manifest or index that a tag or digest refers to. `None` if the registry
    /// does not say, or refuses the request.
    ///
    /// # Errors
    /// `RegistryUnavailable`.
    pub(crate) async fn resolve(&self, target: &str) -> Result<Option<Digest>> {
        // With HEAD, because registries with pull limits count only a GET of a manifest as a pull.
        let request = manifest_request(Method::HEAD, target);
        let is_tag = Digest::parse(target).is_err();
        let response = match self.request(request, is_tag).await {
            Ok((_, response)) => response,
            Err(error) if error.kind == Kind::RegistryUnavailable => return Err(error),
            // Any other error is left to the GET that follows, which fails in the same way.
            Err(_) => return Ok(None),
        };
        let digest = response.headers().get("docker-content-digest");
        Ok(digest.and_then(|value| Digest::parse(value.to_str().ok()?).ok()))
    }

    /// Fetches and verifies a small blob, such as an image config.
    ///
    /// # Errors
    /// As for `manifest`.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let (_, response) =
            self.request(Request::new(Method::GET, format!("blobs/{digest}")), false).await?;
        let bytes = read_document(response)
            .await
            .map_err(|error| error.during(format!("blob {digest}")))?;
        verify(&bytes, digest)?;
        Ok(bytes)
    }

    /// Requests `range` of a blob of `size` bytes. The registry may respond with the whole blob.
    /// The caller verifies the content.
    ///
    /// # Errors
    /// As for `manifest`.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        range: &Range<u64>,
        size: u64,
    ) -> Result<BlobResponse> {
        let mut request = Request::new(Method::GET, format!("blobs/{digest}"));
        if let Some(range) = range_header(range, size) {
            request = request.with(header::RANGE, range);
        }
        let (server, response) = self.request(request, false).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let starts_at = match is_partial {
            // Without the header, assume that it is the range that was requested.
            true => range_start(response.headers()).unwrap_or(range.start),
            false => 0,
        };
        let says_so =
            response.headers().get(header::ACCEPT_RANGES).is_some_and(|unit| unit == "bytes");
        Ok(BlobResponse {
            response,
            is_partial,
            knows_ranges: is_partial || says_so,
            starts_at,
            server,
        })
    }

    /// Marks a server as slow. From now on it is asked only if all others fail.
    pub(super) fn avoid(&self, server: usize) {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner).insert(server);
    }

    /// Sends a request to one server after the other until one responds with success. With
    /// `resolve`, only servers that may resolve tags are asked. Also returns which server
    /// responded.
    ///
    /// # Errors
    /// The error of the last server: with mirrors that is the registry itself, whose error is the
    /// most informative.
    async fn request(&self, request: Request, resolve: bool) -> Result<(usize, Response)> {
        let mut failure = unavailable(NO_SERVER.to_owned());
        // Copied, because no lock may be held while waiting for the network.
        let slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (last, first): (Vec<_>, Vec<_>) =
            self.servers.iter().enumerate().partition(|(index, _)| slow.contains(index));
        for (index, server) in first.into_iter().chain(last) {
            // Content by digest may come from any server, because it is verified. What a tag means
            // cannot be verified.
            if resolve && !server.endpoint.resolves {
                continue;
            }
            match self.request_from(server, &request).await {
                Ok(response) => return Ok((index, response)),
                Err(error) => {
                    tracing::debug!(
                        endpoint = server.endpoint.base,
                        path = request.path,
                        %error,
                        "a registry's endpoint refused a request"
                    );
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    /// Sends a request to one server. Answers a challenge, and retries what may succeed later.
    async fn request_from(&self, server: &Server, request: &Request) -> Result<Response> {
        let url = server.url(&self.name, &request.path)?;
        let mut pause = FIRST_PAUSE;
        let mut was_challenged = false;
        let mut attempt = 1;
        loop {
            let failure = match server.ask(request, &url).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED && !was_challenged =>
                {
                    // Only once: a second 401 means that the credentials are not accepted. The
                    // first one is part of the protocol and does not count as a failed attempt.
                    was_challenged = true;
                    let access = Access::Pull(&self.name);
                    server.authorize(&self.credentials, access, &response).await?;
                    continue;
                }
                Ok(response) if is_transient(response.status()) => {
                    pause = retry_after(&response).unwrap_or(pause);
                    status_error(url.as_str(), &response)
                }
                Ok(response) => return Err(explained_error(url.as_str(), response).await),
                Err(error) if error.kind == Kind::RegistryUnavailable => error,
                Err(error) => return Err(error),
            };
            // The caller then tries the next endpoint, which is better than a long wait here.
            if attempt == ATTEMPTS || pause > LONGEST_PAUSE {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
            pause *= 2;
        }
    }
}

/// The response to a question for tags.
#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

/// The query of the next page: `Link: </v2/a/tags/list?last=x&n=100>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let (target, relation) = link.strip_prefix('<')?.split_once('>')?;
    let (_, query) = target.split_once('?')?;
    relation.contains("next").then(|| query.to_owned())
}

fn manifest_request(method: Method, target: &str) -> Request {
    let path = format!("manifests/{target}");
    Request::new(method, path).with(header::ACCEPT, MANIFEST_TYPES)
}

/// The Content-Type without its parameters.
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned()
}

/// The first number in `Content-Range: bytes 100-199/1000`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The header Range for a part of a blob of `size` bytes. `None` for the whole blob.
fn range_header(range: &Range<u64>, size: u64) -> Option<HeaderValue> {
    let text = match (range.start, range.end) {
        (0, end) if end == size => return None,
        (start, end) if end == size => format!("bytes={start}-"),
        (start, end) => format!("bytes={start}-{}", end - 1),
    };
    Some(HeaderValue::try_from(text).expect("digits are no control characters"))
}

fn verify(bytes: &[u8], digest: &Digest) -> Result<()> {
    let actual = Digest::sha256(bytes);
    match actual == *digest {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Internal,
            format!("wrong digest: asked for {digest}, got {actual}"),
        )),
    }
}
