//! The distribution protocol, as far as a pull needs it: manifests and blobs, mirrors in turn, credentials by challenge.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use oci_spec::image::ImageManifest;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;

use super::{
    auth::{Challenge, Credentials},
    client::Clients,
    hosts::{self, Endpoint},
    reference::{Digest, Reference},
};
use crate::error::{Error, Kind, Result};

/// Everything that a manifest may be.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The distribution specification's limit for a manifest; configs are held to it too.
const MAX_DOCUMENT: usize = 4 << 20;
/// Of one image; more are not looked at.
const MAX_SIGNATURES: usize = 64;
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Attempts at one endpoint, for what may pass: 429, 5xx, a connection that breaks.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A registry that asks for a longer pause is left for the next mirror.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For all of a manifest or config.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// One repository, its endpoints, and the credentials of one pull.
#[derive(Debug)]
pub(crate) struct Registry {
    repository: String,
    credentials: Credentials,
    endpoints: Vec<(Endpoint, Client)>,
    /// Authorization headers by endpoint, once a challenge was met.
    authorization: Mutex<HashMap<String, String>>,
    /// Endpoints, by their place, that are asked last.
    slow: Mutex<BTreeSet<usize>>,
    pub progress: Progress,
}

/// Bytes of one pull: all its downloads together.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub received: AtomicU64,
    /// Of the layers whose download has begun.
    pub expected: AtomicU64,
}

/// A signature by cosign.
#[derive(Debug)]
pub(crate) struct Signature {
    /// What is signed: JSON.
    pub payload: Vec<u8>,
    /// In base64.
    pub signature: String,
}

/// What a registry answers to a request for a part of a blob.
#[derive(Debug)]
pub(crate) struct Answer {
    pub response: Response,
    /// Whether it is a range, and not all of the blob.
    pub partial: bool,
    pub knows_ranges: bool,
    pub starts_at: u64,
    /// For `Registry::avoid`.
    pub endpoint: usize,
}

impl Registry {
    /// Reads where the registry of `reference` is. Blocks.
    pub(super) fn open(
        config_path: &Path,
        clients: &Clients,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Self> {
        let endpoints = hosts::endpoints(config_path, &reference.host)?;
        let endpoints = endpoints
            .into_iter()
            .map(|endpoint| clients.get(&endpoint).map(|client| (endpoint, client)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            repository: reference.repository.clone(),
            credentials,
            endpoints,
            authorization: Mutex::default(),
            slow: Mutex::default(),
            progress: Progress::default(),
        })
    }

    /// A manifest or index by tag or digest: its media type and its bytes, which are checked when `target` is a digest.
    pub(crate) async fn manifest(&self, target: &str) -> Result<(String, Vec<u8>)> {
        let by_digest = Digest::parse(target).ok();
        let get = |client: &Client, url: &str| client.get(url).header(header::ACCEPT, MANIFEST_TYPES);
        let (_, response) = self.request(&format!("manifests/{target}"), by_digest.is_none(), get).await?;
        let media_type =
            response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = read_document(response).await.map_err(|error| error.during(format!("manifest {target}")))?;
        if let Some(digest) = by_digest {
            check_digest(&bytes, &digest)?;
        }
        Ok((media_type, bytes))
    }

    /// The digest of the manifest or index that a tag or digest names; `None` where the registry does not say, or refuses. A HEAD,
    /// which registries with limits for pulls do not count as one.
    pub(crate) async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        let resolve = Digest::parse(target).is_err();
        let head = |client: &Client, url: &str| client.head(url).header(header::ACCEPT, MANIFEST_TYPES);
        let (_, response) = match self.request(&format!("manifests/{target}"), resolve, head).await {
            Err(error) if error.kind != Kind::RegistryUnavailable => return Ok(None),
            answered => answered?,
        };
        let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(said.and_then(|digest| Digest::parse(digest).ok()))
    }

    /// A small blob, such as an image's config.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let (_, response) = self.request(&format!("blobs/{digest}"), false, |client, url| client.get(url)).await?;
        let bytes = read_document(response).await.map_err(|error| error.during(format!("blob {digest}")))?;
        check_digest(&bytes, digest)?;
        Ok(bytes)
    }

    /// Signatures that cosign made of the manifest or index `digest`; their payloads are not checked here.
    pub(crate) async fn signatures(&self, digest: &Digest) -> Result<Vec<Signature>> {
        let bytes = match self.manifest(&format!("sha256-{}.sig", digest.hex())).await {
            Err(error) if error.kind == Kind::NotFound => return Ok(Vec::new()),
            found => found?.1,
        };
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::precondition(format!("signatures of {digest}: {error}")))?;
        let mut signatures = Vec::new();
        for layer in manifest.layers().iter().take(MAX_SIGNATURES) {
            let annotations = layer.annotations().as_ref();
            let signature = annotations.and_then(|all| all.get("dev.cosignproject.cosign/signature"));
            if let Some(signature) = signature.filter(|_| layer.media_type().to_string() == SIMPLE_SIGNING) {
                let payload = self.document(&Digest::parse(layer.digest().as_ref())?).await?;
                signatures.push(Signature { payload, signature: signature.clone() });
            }
        }
        Ok(signatures)
    }

    /// A blob of `size` bytes, of which `range` is wanted; what comes may be all of it. The caller checks it.
    pub(crate) async fn blob(&self, digest: &Digest, range: &Range<u64>, size: u64) -> Result<Answer> {
        let header = match (range.start, range.end) {
            (0, end) if end == size => None,
            (start, end) if end == size => Some(format!("bytes={start}-")),
            (start, end) => Some(format!("bytes={start}-{}", end - 1)),
        };
        let (endpoint, response) = self
            .request(&format!("blobs/{digest}"), false, |client, url| match &header {
                None => client.get(url),
                Some(range) => client.get(url).header(header::RANGE, range),
            })
            .await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        // `bytes 100-199/1000`; a server that leaves it out means what was asked for.
        let said = response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        let starts_at = if partial { said.unwrap_or(range.start) } else { 0 };
        let knows_ranges =
            partial || response.headers().get(header::ACCEPT_RANGES).is_some_and(|units| units == "bytes");
        Ok(Answer { response, partial, knows_ranges, starts_at, endpoint })
    }

    /// From now on asks an endpoint that turned out to be slow only when all others fail.
    pub(crate) fn avoid(&self, endpoint: usize) {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner).insert(endpoint);
    }

    /// Tries every endpoint in turn: the answer, and which one gave it. The error is the one that says most: that of the last.
    async fn request(
        &self,
        path: &str,
        resolve: bool,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> Result<(usize, Response)> {
        let mut failure = unavailable("no endpoint of the registry serves pulls".to_owned());
        let slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (last, first): (Vec<_>, Vec<_>) =
            self.endpoints.iter().enumerate().partition(|(index, _)| slow.contains(index));
        let endpoints = first.into_iter().chain(last).filter(|(_, (endpoint, _))| endpoint.resolves || !resolve);
        for (index, (endpoint, client)) in endpoints {
            match self.request_at(endpoint, client, path, &build).await {
                Ok(response) => return Ok((index, response)),
                Err(error) => {
                    tracing::debug!(endpoint = endpoint.base, path, %error, "registry request");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn request_at(
        &self,
        endpoint: &Endpoint,
        client: &Client,
        path: &str,
        build: &impl Fn(&Client, &str) -> RequestBuilder,
    ) -> Result<Response> {
        let url = format!("{}/{}/{path}", endpoint.base, self.repository);
        let mut pause = FIRST_PAUSE;
        let mut challenged = false;
        let mut attempt = 1;
        loop {
            let mut request = build(client, &url);
            if let Some(namespace) = &endpoint.namespace {
                request = request.query(&[("ns", namespace)]);
            }
            if let Some(authorization) = self.authorization(&endpoint.base) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let failure = match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !challenged => {
                    challenged = true;
                    self.authorize(endpoint, client, &response).await?;
                    continue;
                }
                Ok(response) if passes(response.status()) => {
                    pause = retry_after(&response).unwrap_or(pause);
                    refused(&url, &response)
                }
                Ok(response) => return Err(refused(&url, &response)),
                Err(error) => unavailable(format!("{url}: {}", root_cause(&error))),
            };
            if attempt == ATTEMPTS || pause > LONGEST_PAUSE {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
            pause *= 2;
        }
    }

    fn authorization(&self, base: &str) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).get(base).cloned()
    }

    /// Answers a 401: credentials are shown only to the endpoint that asked, or to the token server that it names.
    async fn authorize(&self, endpoint: &Endpoint, client: &Client, response: &Response) -> Result<()> {
        let url = response.url();
        let challenge = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .next()
            .ok_or_else(|| refused(url.as_str(), response))?;
        let authorization = match (challenge, &self.credentials) {
            (_, Credentials::Token(token)) => format!("Bearer {token}"),
            (Challenge::Basic, Credentials::Basic { username, password }) => {
                use base64::{Engine, engine::general_purpose::STANDARD};
                format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
            }
            (Challenge::Basic, Credentials::Anonymous | Credentials::Identity(_)) => {
                return Err(refused(url.as_str(), response));
            }
            (Challenge::Bearer { realm, service, scope }, _) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                format!("Bearer {}", self.fetch_token(client, &realm, service, scope).await?)
            }
        };
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).insert(endpoint.base.clone(), authorization);
        Ok(())
    }

    /// The token protocol of the distribution project (docs/spec/auth/token).
    async fn fetch_token(
        &self,
        client: &Client,
        realm: &str,
        service: Option<String>,
        scope: String,
    ) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                let grant =
                    [("grant_type", "refresh_token"), ("client_id", "berth"), ("refresh_token", token.as_str())];
                fields.extend(grant.map(|(name, value)| (name, value.to_owned())));
                client.post(realm).form(&fields)
            }
            Credentials::Basic { username, password } => {
                client.get(realm).query(&fields).basic_auth(username, Some(password))
            }
            Credentials::Anonymous | Credentials::Token(_) => client.get(realm).query(&fields),
        };
        let response =
            request.send().await.map_err(|error| unavailable(format!("token from {realm}: {}", root_cause(&error))))?;
        if !response.status().is_success() {
            return Err(refused(realm, &response));
        }
        let bytes = read_document(response).await?;
        let token: Token = serde_json::from_slice(&bytes).with_context(|| format!("token from {realm}"))?;
        Ok(if token.token.is_empty() { token.access_token } else { token.token })
    }
}

async fn read_document(mut response: Response) -> Result<Vec<u8>> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unavailable(root_cause(&error)))? {
            if bytes.len() + chunk.len() > MAX_DOCUMENT {
                return Err(Error::invalid("larger than 4 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let late = |_| unavailable(format!("not all of it came within {} s", DOCUMENT_TIMEOUT.as_secs()));
    tokio::time::timeout(DOCUMENT_TIMEOUT, read).await.map_err(late)?
}

fn check_digest(bytes: &[u8], digest: &Digest) -> Result<()> {
    use sha2::Digest as _;
    let actual = Digest::of(sha2::Sha256::digest(bytes));
    if actual == *digest {
        Ok(())
    } else {
        Err(Error::new(Kind::Internal, format!("wrong digest: asked for {digest}, got {actual}")))
    }
}

/// What may be different at the next attempt.
fn passes(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn retry_after(response: &Response) -> Option<Duration> {
    pause_until(response.headers().get(header::RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// Seconds, or a date (RFC 9110, 10.2.3); one that has passed is now.
fn pause_until(text: &str, now: SystemTime) -> Option<Duration> {
    let date = || Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default());
    text.parse().ok().map(Duration::from_secs).or_else(date)
}

fn refused(url: &str, response: &Response) -> Error {
    let status = response.status();
    let message = format!("{url}: {status}");
    match status {
        StatusCode::UNAUTHORIZED => Error::new(Kind::Unauthenticated, message),
        StatusCode::FORBIDDEN => Error::new(Kind::PermissionDenied, message),
        StatusCode::NOT_FOUND => Error::not_found(message),
        status if passes(status) => unavailable(message),
        _ => Error::new(Kind::Internal, message),
    }
}

pub(crate) fn unavailable(message: String) -> Error {
    Error::new(Kind::RegistryUnavailable, message)
}

/// reqwest's own text repeats the URL and hides the cause.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let cause =
        std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string);
    match cause.contains("CaUsedAsEndEntity") {
        // What `openssl req -x509` makes unless told otherwise.
        true => format!("{cause} (the server shows a CA's certificate: it needs one with basicConstraints=CA:FALSE)"),
        false => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_asks_for_a_pause_in_seconds_or_by_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
        let seconds = |text| pause_until(text, now).map(|pause| pause.as_secs());
        assert_eq!((seconds("120"), seconds("Sun, 06 Nov 1994 08:49:37 GMT")), (Some(120), Some(7)));
        assert_eq!((seconds("Sun, 06 Nov 1994 08:00:00 GMT"), seconds("soon")), (Some(0), None));
    }
}
