//! HTTP requests that do not carry secrets to another origin.
//!
//! Credentials, the headers in hosts.toml and the node's certificate are meant for the origin of an
//! endpoint: its scheme, host and port (RFC 6454). Registries redirect clients elsewhere for blobs,
//! usually to signed URLs of an object store, and whoever controls a redirect must not get to see
//! the secrets. (In CVE-2020-15157 a foreign server asked containerd for credentials and got them.)
//! So the HTTP client follows no redirects; they are followed here, hop by hop, without the
//! secrets.

use anyhow::Context;
use berth_base::error::{Error, Kind, Result};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    client::{Clients, Purpose},
    hosts::Endpoint,
    response::{root_cause, unavailable},
};

/// As many as Go's HTTP client follows, which most registries are tested with.
const MAX_REDIRECTS: usize = 10;

/// How one endpoint is reached.
#[derive(Debug)]
pub(super) struct Transport {
    /// The endpoint's URL. Its origin may see the secrets.
    pub base: Url,
    /// The headers from hosts.toml.
    pub headers: HeaderMap,
    /// Shows the node's certificate to the server.
    pub client: Client,
    /// For other origins: trusts the same authorities, but shows no certificate.
    pub foreign: Client,
}

/// The headers of a request.
#[derive(Debug)]
pub(super) struct Headers<'a> {
    /// For the first origin, including secrets.
    pub own: &'a HeaderMap,
    /// For every other origin.
    pub open: &'a HeaderMap,
}

/// A response, perhaps after redirects.
pub(super) struct Reply {
    pub response: Response,
    /// Whether all redirects stayed within the first origin.
    pub same_origin: bool,
}

impl Transport {
    /// Prepares to reach `endpoint`. Reads its certificates if they have changed. Blocks.
    ///
    /// # Errors
    /// The URL, a header or a certificate is not valid.
    pub(super) fn new(
        endpoint: &Endpoint,
        clients: &Clients,
        purpose: Purpose,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            base: Url::parse(&endpoint.base)
                .with_context(|| format!("endpoint {:?}", endpoint.base))?,
            headers: parse_headers(&endpoint.headers)?,
            client: clients.get(endpoint, purpose)?,
            foreign: clients.get(&Endpoint { client: None, ..endpoint.clone() }, purpose)?,
        })
    }

    /// Sends a request to `first` and follows redirects.
    ///
    /// # Errors
    /// `RegistryUnavailable` if a connection fails; `Internal` for a bad redirect, or too many.
    pub(super) async fn follow(
        &self,
        method: &Method,
        first: &Url,
        headers: Headers<'_>,
    ) -> Result<Reply> {
        let mut url = first.clone();
        let mut same_origin = true;
        for _ in 0..=MAX_REDIRECTS {
            // Once another origin was involved, it may have chosen every further URL. So not even a
            // redirect back to the first origin gets the secrets.
            same_origin &= is_same_origin(&url, first);
            let (client, headers) = match same_origin {
                true => (&self.client, headers.own),
                false => (&self.foreign, headers.open),
            };
            // The method stays the same. No request that is redirected has a body.
            let request = client.request(method.clone(), url.clone()).headers(headers.clone());
            let response = send(request, first).await?;
            match redirect(&response) {
                None => return Ok(Reply { response, same_origin }),
                Some(Ok(next)) => url = next,
                Some(Err(what)) => {
                    return Err(Error::new(Kind::Internal, format!("{first}: {what}")));
                }
            }
        }
        Err(Error::new(Kind::Internal, format!("{first}: more than {MAX_REDIRECTS} redirects")))
    }
}

/// Sends one request. Errors contain the URL `first` and not that of a redirect, which may be
/// signed and is then a secret that must not appear in errors and logs.
pub(super) async fn send(request: RequestBuilder, first: &Url) -> Result<Response> {
    request.send().await.map_err(|error| unavailable(format!("{first}: {}", root_cause(&error))))
}

fn parse_headers(given: &[(String, String)]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name =
            HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("header {name:?}"))?;
        let value =
            HeaderValue::from_str(value).with_context(|| format!("value of the header {name}"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

pub(super) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// The origin as text, for errors.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The error if another origin asks for credentials that are not meant for it.
pub(super) fn foreign_challenge(home: &Url, foreign: &Url) -> Error {
    let home = origin(home);
    let foreign = origin(foreign);
    Error::new(
        Kind::Unauthenticated,
        format!(
            "{home} redirects to {foreign}, which asks for credentials: they are for {home} alone"
        ),
    )
}

/// The target of a redirect, or what is wrong with it. `None` for any other response.
fn redirect(response: &Response) -> Option<std::result::Result<Url, String>> {
    match response.status() {
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {}
        _ => return None,
    }
    // Without a location there is nothing to follow; the caller reports the status.
    let location = response.headers().get(header::LOCATION)?.to_str().ok();
    let target = location.and_then(|location| response.url().join(location).ok());
    // A registry must not be able to make the daemon use another protocol.
    let target = target.filter(|url| matches!(url.scheme(), "http" | "https"));
    Some(target.ok_or_else(|| "redirects to what is no http or https URL".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let home = url("https://r.example/v2/");
        for (other, expected) in [
            ("https://r.example/other?x=y", true),
            ("https://R.example:443", true),
            ("https://user@r.example/", true),
            ("http://r.example/v2/", false),
            ("https://r.example:8443/v2/", false),
            ("https://cdn.r.example/v2/", false),
            ("https://r.example.evil/v2/", false),
            ("https://r.example@evil/v2/", false),
            ("data:text/plain,x", false),
        ] {
            assert_eq!(is_same_origin(&home, &url(other)), expected, "{other}");
        }
        assert!(!is_same_origin(&url("http://r:443/"), &url("https://r:443/")));
    }
}
