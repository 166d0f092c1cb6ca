//! One endpoint of a registry, and the authorization that it asked for.

use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use berth_base::error::Result;
use reqwest::{
    Body, Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

pub(super) use super::token::Access;
use super::{
    client::{Clients, Purpose},
    hosts::Endpoint,
    token,
    transport::{Headers, Reply, Transport, foreign_challenge, is_same_origin, send},
};
use crate::credentials::Credentials;

#[derive(Debug)]
pub(super) struct Server {
    pub endpoint: Endpoint,
    transport: Transport,
    /// The answer to this endpoint's challenge. Later requests of the same pull carry it from the
    /// start.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A request about a repository, whichever endpoint it is sent to.
#[derive(Debug)]
pub(super) struct Request {
    method: Method,
    /// Path below the repository's URL.
    pub path: String,
    /// Every origin may see these, so they contain no secrets.
    headers: HeaderMap,
}

impl Request {
    pub(super) fn new(method: Method, path: String) -> Self {
        Self { method, path, headers: HeaderMap::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl Server {
    /// Reads the endpoint's certificates if they have changed. Blocks.
    ///
    /// # Errors
    /// The URL, a header or a certificate is not valid.
    pub(super) fn new(
        endpoint: Endpoint,
        clients: &Clients,
        purpose: Purpose,
    ) -> anyhow::Result<Self> {
        let transport = Transport::new(&endpoint, clients, purpose)?;
        Ok(Self { endpoint, transport, authorization: Mutex::default() })
    }

    /// The URL for a request in `repository`; without one that of the registry's API.
    pub(super) fn url(&self, repository: &str, path: &str) -> Result<Url> {
        let text = match repository {
            "" => format!("{}/{path}", self.endpoint.base),
            _ => format!("{}/{repository}/{path}", self.endpoint.base),
        };
        let mut url = Url::parse(&text).with_context(|| format!("URL {text:?}"))?;
        // Without this a mirror of several registries could not tell their repositories apart
        // (containerd's docs/hosts.md).
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Sends a request, with everything that this server may see.
    ///
    /// # Errors
    /// `RegistryUnavailable` if the connection fails; `Unauthenticated` if another origin asks for
    /// credentials.
    pub(super) async fn ask(&self, request: &Request, url: &Url) -> Result<Response> {
        let own = self.own_headers(&request.headers);
        let headers = Headers { own: &own, open: &request.headers };
        let Reply { response, same_origin } =
            self.transport.follow(&request.method, url, headers).await?;
        // Answering this challenge would show the registry's credentials to somebody else.
        match response.status() == StatusCode::UNAUTHORIZED && !same_origin {
            true => Err(foreign_challenge(url, response.url())),
            false => Ok(response),
        }
    }

    /// Sends a body to where the registry wants it. Redirects are not followed: the body goes once.
    /// Another origin gets no secrets.
    ///
    /// # Errors
    /// `RegistryUnavailable` if the connection fails.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        content_type: &str,
        body: Body,
    ) -> Result<Response> {
        let content_type = HeaderValue::from_str(content_type).context("a media type")?;
        let open = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        let (client, headers) = match self.is_at(url) {
            true => (&self.transport.client, self.own_headers(&open)),
            false => (&self.transport.foreign, open),
        };
        // The URL of an upload may be signed, so errors name the registry only.
        let request = client.request(method, url.clone()).headers(headers).body(body);
        send(request, &self.transport.base).await
    }

    /// Whether a URL is of this server's origin.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        is_same_origin(url, &self.transport.base)
    }

    /// What this server may see with a request that has these headers.
    fn own_headers(&self, headers: &HeaderMap) -> HeaderMap {
        // Headers of the request replace those of hosts.toml, which must not change the media types
        // or ranges that the caller expects.
        let mut own = self.transport.headers.clone();
        own.extend(headers.clone());
        // Locked only to copy it: no lock may be held while waiting for the network.
        let authorization =
            self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(authorization) = authorization {
            own.insert(header::AUTHORIZATION, authorization);
        }
        own
    }

    /// Answers a 401 of this server, for this pull's later requests. The server gets to see the
    /// credentials, or the token server that it names does.
    ///
    /// # Errors
    /// `Unauthenticated` if the credentials are not sufficient.
    pub(super) async fn authorize(
        &self,
        credentials: &Credentials,
        access: Access<'_>,
        response: &Response,
    ) -> Result<()> {
        let authorization =
            token::authorization(&self.transport, credentials, access, response).await?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(())
    }
}
