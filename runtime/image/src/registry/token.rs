//! Answers a registry's challenge, directly or with a token from its token server (distribution
//! project, docs/spec/auth/token and docs/spec/auth/oauth).

use std::collections::BTreeMap;

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::error::{Error, Kind, Result};
use reqwest::{
    Method, Response, Url,
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::{
    response::{read_document, status_error},
    transport::{Headers, Reply, Transport, foreign_challenge, is_same_origin, origin, send},
};
use crate::credentials::Credentials;

/// What docker's clients are told by this text.
pub(super) const NO_BASIC_CREDENTIALS: &str = "no basic auth credentials";

/// A parsed `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    /// The token server's URL, and what to request a token for.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// A token server's response. The token is under either name; OAuth2 uses the second.
#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// What a token is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access<'a> {
    /// What the challenge names, or else pulls from this repository, if it is one.
    Pull(&'a str),
    /// These scopes, whatever the challenge names.
    Scopes(&'a [String]),
}

impl Access<'_> {
    fn scopes(self, challenged: Option<String>) -> Vec<String> {
        match self {
            // Registries that leave out the scope mean the repository of the request.
            Self::Pull(repository) => {
                let of_repository = || format!("repository:{repository}:pull");
                let scope = challenged.or_else(|| (!repository.is_empty()).then(of_repository));
                scope.into_iter().collect()
            }
            Self::Scopes(scopes) => scopes.to_vec(),
        }
    }
}

/// The value of the header Authorization for requests with this access, after the endpoint of
/// `transport` has sent `response`, a 401.
///
/// # Errors
/// `Unauthenticated` if the credentials are not of a kind that the registry accepts.
pub(super) async fn authorization(
    transport: &Transport,
    credentials: &Credentials,
    access: Access<'_>,
    response: &Response,
) -> Result<HeaderValue> {
    let refused = || status_error(response.url().as_str(), response);
    let challenge = challenge(response).ok_or_else(refused)?;
    match (challenge, credentials) {
        (_, Credentials::RegistryToken(token)) => secret(&format!("Bearer {token}")),
        (Challenge::Basic, Credentials::Basic { username, password }) => basic(username, password),
        (Challenge::Basic, Credentials::Anonymous | Credentials::IdentityToken(_)) => {
            let url = response.url();
            let message = format!("{url}: {}: {NO_BASIC_CREDENTIALS}", response.status());
            Err(Error::new(Kind::Unauthenticated, message))
        }
        // Anonymous clients too: Docker Hub and others serve nothing without a token.
        (Challenge::Bearer { realm, service, scope }, _) => {
            let scopes = access.scopes(scope);
            let token = fetch_token(transport, credentials, &realm, service, scopes).await?;
            secret(&format!("Bearer {token}"))
        }
    }
}

/// The first challenge of a kind that is supported.
fn challenge(response: &Response) -> Option<Challenge> {
    let values = response.headers().get_all(header::WWW_AUTHENTICATE);
    values.iter().find_map(|value| Challenge::parse(value.to_str().ok()?))
}

async fn fetch_token(
    transport: &Transport,
    credentials: &Credentials,
    realm: &str,
    service: Option<String>,
    scopes: Vec<String>,
) -> Result<String> {
    let url = token_server(&transport.base, realm, credentials)?;
    let mut fields: Vec<(&str, String)> = Vec::new();
    fields.extend(scopes.into_iter().map(|scope| ("scope", scope)));
    fields.extend(service.map(|service| ("service", service)));
    let response = ask_for_token(transport, credentials, &url, fields)
        .await
        .map_err(|error| error.during("token"))?;
    if !response.status().is_success() {
        return Err(status_error(realm, &response));
    }
    let bytes = read_document(response).await?;
    let issued: TokenResponse =
        serde_json::from_slice(&bytes).with_context(|| format!("token from {realm}"))?;
    Ok(if issued.token.is_empty() { issued.access_token } else { issued.token })
}

async fn ask_for_token(
    transport: &Transport,
    credentials: &Credentials,
    realm: &Url,
    mut fields: Vec<(&str, String)>,
) -> Result<Response> {
    // Headers in hosts.toml may be secrets too, and the token server is often another origin.
    let mut own = match is_same_origin(realm, &transport.base) {
        true => transport.headers.clone(),
        false => HeaderMap::new(),
    };
    if let Credentials::IdentityToken(token) = credentials {
        // A form has one field of all scopes, where a query has one for each.
        let scopes: Vec<String> =
            fields.extract_if(.., |(name, _)| *name == "scope").map(|(_, scope)| scope).collect();
        fields.push(("scope", scopes.join(" ")));
        fields.push(("grant_type", "refresh_token".to_owned()));
        fields.push(("client_id", "berth".to_owned()));
        fields.push(("refresh_token", token.clone()));
        // The secret is in the body, so redirects are not followed at all.
        let request = transport.client.post(realm.clone()).headers(own).form(&fields);
        return send(request, realm).await;
    }
    if let Credentials::Basic { username, password } = credentials {
        own.insert(header::AUTHORIZATION, basic(username, password)?);
    }
    let mut url = realm.clone();
    url.query_pairs_mut().extend_pairs(fields);
    let headers = Headers { own: &own, open: &HeaderMap::new() };
    let Reply { response, same_origin } = transport.follow(&Method::GET, &url, headers).await?;
    // If a redirect led to another origin, it did not get the credentials, and its token is an
    // anonymous one. The pull would fail later with that, and the reason would be harder to see.
    match same_origin || !credentials.are_secret() {
        true => Ok(response),
        false => Err(foreign_challenge(realm, response.url())),
    }
}

/// Checks the URL of a token server that the registry at `base` names. If the registry is reached
/// over TLS, credentials must not be sent to its token server in clear text.
fn token_server(base: &Url, realm: &str, credentials: &Credentials) -> Result<Url> {
    let wrong = |what: &str| {
        Error::new(Kind::Unauthenticated, format!("{}: token server {realm}: {what}", origin(base)))
    };
    let url = Url::parse(realm).map_err(|error| wrong(&error.to_string()))?;
    match (base.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => Ok(url),
        ("https", "http") if !credentials.are_secret() => Ok(url),
        ("https", "http") => Err(wrong("credentials of an https registry are not sent over http")),
        _ => Err(wrong("not an http or https URL")),
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// A header value that the HTTP library does not log.
fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::invalid("a token with a control character"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Challenge {
    /// Parses RFC 9110 section 11.6.1 as far as registries use it: one scheme, quoted parameters.
    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// Parses `name="value"` pairs. Commas within quotes belong to the value: scopes contain lists.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn challenges_are_read() {
        let header =
            r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a/b:pull,push""#;
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://auth.x/token".into(),
            service: Some("x".into()),
            scope: scope.map(str::to_owned),
        };
        assert_eq!(Challenge::parse(header), Some(bearer(Some("repository:a/b:pull,push"))));
        assert_eq!(
            Challenge::parse(r#"bearer Realm="https://auth.x/token", service=x"#),
            Some(bearer(None))
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn credentials_of_https_go_over_https_alone() {
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        for (base, realm, credentials, expected) in [
            ("https://r/v2", "https://auth/token", &basic, true),
            ("http://r/v2", "http://auth/token", &basic, true),
            ("http://r/v2", "https://auth/token", &basic, true),
            ("https://r/v2", "http://auth/token", &basic, false),
            ("https://r/v2", "http://auth/token", &Credentials::IdentityToken("t".into()), false),
            ("https://r/v2", "http://auth/token", &Credentials::Anonymous, true),
            ("https://r/v2", "ftp://auth/token", &Credentials::Anonymous, false),
            ("https://r/v2", "/token", &basic, false),
        ] {
            assert_eq!(
                token_server(&url(base), realm, credentials).is_ok(),
                expected,
                "{base} {realm}"
            );
        }
    }
}
