//! A repository that is pushed to, at the one endpoint of its registry that takes images. Nothing is
//! ever pushed to a mirror.

use std::{
    io,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use berth_base::error::{Error, Kind, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{Body, Method, Response, StatusCode, Url, header};

use super::{
    client::{Clients, Purpose},
    hosts,
    response::{is_transient, refusal, unavailable},
    server::{Access, Request, Server},
    token::NO_BASIC_CREDENTIALS,
};
use crate::{credentials::Credentials, digest::Digest, reference::Reference};

/// How long a registry may take for a response, which may mean that it moves a layer within its
/// object store.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
/// A layer that is sent fails if the registry takes none of it and does not respond for this long.
const STALL: Duration = Duration::from_secs(60);
const BYTES: &str = "application/octet-stream";

/// A repository, the endpoint that takes its images, and the credentials of one push.
#[derive(Debug)]
pub(crate) struct Target {
    name: String,
    server: Server,
    credentials: Credentials,
    /// What tokens are asked for.
    scopes: Vec<String>,
}

/// A blob that a registry has a part of.
#[derive(Debug)]
pub(crate) struct PartialUpload {
    /// Where the rest is sent to.
    url: Url,
    /// How many bytes it has.
    pub received: u64,
}

impl Target {
    /// Reads the configuration for the registry of `reference`, and asks whether it is there. `from`
    /// are the repositories of it that layers may be mounted from. What is returned beside the target
    /// is for `authorize`.
    ///
    /// # Errors
    /// `RegistryUnavailable` if it is not; `FailedPrecondition` if nothing can be pushed to it.
    pub(crate) async fn open(
        config_path: &Path,
        clients: Arc<Clients>,
        reference: &Reference,
        credentials: Credentials,
        from: &[String],
    ) -> Result<(Self, Response)> {
        let (config_path, host) = (config_path.to_owned(), reference.host.clone());
        let server = crate::unblock::unblock(move || {
            let endpoint = hosts::push_endpoint(&config_path, &host)?.ok_or_else(|| {
                Error::precondition(format!("no endpoint of {host} is configured to take images"))
            })?;
            Ok(Server::new(endpoint, &clients, Purpose::Push)?)
        })
        .await?;
        let name = reference.repository.clone();
        let mut scopes = vec![format!("repository:{name}:pull,push")];
        scopes.extend(from.iter().map(|from| format!("repository:{from}:pull")));
        let ping = Request::new(Method::GET, String::new());
        let url = server.url("", "")?;
        let response = within(RESPONSE_TIMEOUT, server.ask(&ping, &url)).await?;
        Ok((Self { name, server, credentials, scopes }, response))
    }

    /// Answers the challenge that the registry may have sent.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub(crate) async fn authorize(&self, response: &Response) -> Result<()> {
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(());
        }
        let access = Access::Scopes(&self.scopes);
        let authorized = self.server.authorize(&self.credentials, access, response);
        authorized.await.map_err(|error| match error.message.ends_with(NO_BASIC_CREDENTIALS) {
            true => Error::new(error.kind, NO_BASIC_CREDENTIALS),
            false => error,
        })
    }

    /// Whether the repository has a blob. A registry that refuses to say has none.
    ///
    /// # Errors
    /// `RegistryUnavailable`.
    pub(crate) async fn has(&self, blob: &Digest) -> Result<bool> {
        let request = Request::new(Method::HEAD, format!("blobs/{blob}"));
        let url = self.server.url(&self.name, &request.path)?;
        Ok(self.ask(&request, &url).await?.status().is_success())
    }

    /// Asks the registry to take a blob over from another of its repositories. If it does not, there
    /// may be an upload that the blob can be sent to.
    ///
    /// # Errors
    /// As for `begin`.
    pub(crate) async fn mount(
        &self,
        blob: &Digest,
        from: &str,
    ) -> Result<Option<PartialUpload>, MountRefused> {
        let refused = MountRefused;
        let mut url = self.uploads().map_err(|_| refused)?;
        url.query_pairs_mut().append_pair("mount", blob.as_str()).append_pair("from", from);
        let response = self.post(&url).await.map_err(|_| refused)?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => self.upload_of(&response, 0).map(Some).map_err(|_| refused),
            _ => Err(refused),
        }
    }

    /// Begins to upload a blob.
    ///
    /// # Errors
    /// `Unauthenticated` and `PermissionDenied`, in the registry's words; `RegistryUnavailable` if
    /// another attempt may succeed.
    pub(crate) async fn begin(&self) -> Result<PartialUpload> {
        let response = self.post(&self.uploads()?).await?;
        match response.status().is_success() {
            true => self.upload_of(&response, 0),
            false => Err(refusal(response).await),
        }
    }

    /// How far a broken upload has come. `None` if the registry does not know it any more.
    pub(crate) async fn resume(&self, upload: PartialUpload) -> Option<PartialUpload> {
        let url = upload.url;
        // Only the registry itself gets to see the credentials.
        if !self.server.is_at(&url) {
            return None;
        }
        let request = Request::new(Method::GET, String::new());
        let response = self.ask(&request, &url).await.ok().filter(|r| r.status().is_success())?;
        // `0-99` are a hundred bytes. A registry without any says 0-0, as for a single byte.
        let range = response.headers().get(header::RANGE)?.to_str().ok()?;
        let last: u64 = range.rsplit_once('-')?.1.parse().ok()?;
        self.upload_of(&response, if last == 0 { 0 } else { last + 1 }).ok()
    }

    /// Sends the rest of a blob, and returns where it ends.
    ///
    /// # Errors
    /// `RegistryUnavailable` if the connection breaks, with which the upload may go on; what the
    /// registry says.
    pub(crate) async fn send(
        &self,
        upload: &PartialUpload,
        rest: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<PartialUpload> {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let counted = rest.inspect(move |chunk| {
            let length = chunk.as_ref().map_or(0, Bytes::len);
            counter.fetch_add(length as u64, Ordering::Relaxed);
        });
        let body = Body::wrap_stream(counted);
        let mut sending = pin!(self.server.send(Method::PATCH, &upload.url, BYTES, body));
        let mut before = 0;
        let response = loop {
            if let Ok(response) = tokio::time::timeout(STALL, &mut sending).await {
                break response?;
            }
            let now = sent.load(Ordering::Relaxed);
            if now == before {
                return Err(unavailable(format!("stalled: nothing was sent for {STALL:?}")));
            }
            before = now;
        };
        let received = upload.received + sent.load(Ordering::Relaxed);
        match response.status() {
            status if status.is_success() => self.upload_of(&response, received),
            // The token has expired. The body went with the request.
            StatusCode::UNAUTHORIZED => {
                self.authorize(&response).await?;
                Err(unavailable(refusal(response).await.message))
            }
            // The registry has lost track of it, and the blob has to be sent again.
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(unavailable(refusal(response).await.message))
            }
            _ => Err(refusal(response).await),
        }
    }

    /// Ends an upload.
    ///
    /// # Errors
    /// As for `send`.
    pub(crate) async fn finish(&self, upload: &PartialUpload, blob: &Digest) -> Result<()> {
        let mut url = upload.url.clone();
        url.query_pairs_mut().append_pair("digest", blob.as_str());
        self.put(&url, BYTES, Vec::new()).await
    }

    /// Uploads a small blob at once, unless it is there.
    ///
    /// # Errors
    /// As for `begin`.
    pub(crate) async fn put_document(&self, digest: &Digest, document: Vec<u8>) -> Result<()> {
        if self.has(digest).await? {
            return Ok(());
        }
        let mut url = self.begin().await?.url;
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        self.put(&url, BYTES, document).await
    }

    /// # Errors
    /// As for `begin`.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        manifest: Vec<u8>,
    ) -> Result<()> {
        let url = self.server.url(&self.name, &format!("manifests/{tag}"))?;
        self.put(&url, media_type, manifest).await
    }

    fn uploads(&self) -> Result<Url> {
        self.server.url(&self.name, "blobs/uploads/")
    }

    async fn post(&self, url: &Url) -> Result<Response> {
        self.ask(&Request::new(Method::POST, String::new()), url).await
    }

    async fn put(&self, url: &Url, content_type: &str, document: Vec<u8>) -> Result<()> {
        let mut was_challenged = false;
        loop {
            let body = Body::from(document.clone());
            let sending = self.server.send(Method::PUT, url, content_type, body);
            let response = within(RESPONSE_TIMEOUT, sending).await?;
            match response.status() {
                status if status.is_success() => return Ok(()),
                StatusCode::UNAUTHORIZED if !was_challenged => {
                    was_challenged = true;
                    self.authorize(&response).await?;
                }
                _ => return Err(refusal(response).await),
            }
        }
    }

    /// The response to a request without a body, once a challenge is answered.
    async fn ask(&self, request: &Request, url: &Url) -> Result<Response> {
        let response = within(RESPONSE_TIMEOUT, self.server.ask(request, url)).await?;
        if is_transient(response.status()) {
            return Err(refusal(response).await);
        }
        // A token that was issued without these scopes is not issued with them now.
        if response.status() != StatusCode::UNAUTHORIZED || self.authorize(&response).await.is_err()
        {
            return Ok(response);
        }
        within(RESPONSE_TIMEOUT, self.server.ask(request, url)).await
    }

    fn upload_of(&self, response: &Response, received: u64) -> Result<PartialUpload> {
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|location| location.to_str().ok());
        let location = location.context("the registry does not say where a layer goes")?;
        let url = response.url().join(location).context("where a layer goes")?;
        // A registry must not be able to make the daemon use another protocol.
        match url.scheme() {
            "http" | "https" => Ok(PartialUpload { url, received }),
            _ => Err(Error::new(Kind::Internal, "the registry wants a layer by another protocol")),
        }
    }
}

/// The registry does not take a blob over from another repository. The blob has to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountRefused;

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(unavailable(format!("no response within {} s", limit.as_secs()))),
    }
}
