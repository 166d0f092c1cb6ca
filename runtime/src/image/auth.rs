//! Credentials for one pull, and what a registry's challenge turns them into.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::error::{Error, Result};

/// What the kubelet sends with PullImage (`AuthConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Credentials {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A refresh token, which only the registry's token server sees (OAuth2).
    Identity(String),
    /// Used as it is, in place of a token that the registry's own server would issue.
    Token(String),
}

/// The fields of `AuthConfig`, as they come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub username: String,
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    pub registry_token: String,
    pub identity_token: String,
    /// The only host that may see them; empty means the one of the image.
    pub server_address: String,
}

impl Given {
    /// Whether nothing was given at all.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { username, password, auth, registry_token, identity_token, server_address: _ } = self;
        [username, password, auth, registry_token, identity_token].into_iter().all(String::is_empty)
    }

    /// What may be shown to `host`.
    ///
    /// # Errors
    /// `auth` that is not base64 of `user:password`.
    pub(crate) fn for_host(self, host: &str) -> Result<Credentials> {
        if !self.server_address.is_empty() && server_host(&self.server_address) != host {
            return Ok(Credentials::Anonymous);
        }
        if !self.username.is_empty() {
            return Ok(Credentials::Basic { username: self.username, password: self.password });
        }
        if !self.auth.is_empty() {
            let wrong = || Error::invalid("auth is not base64 of \"user:password\"");
            let text = STANDARD
                .decode(self.auth.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(wrong)?;
            let (username, password) = text.split_once(':').ok_or_else(wrong)?;
            let (username, password) = (username.to_owned(), password.trim_matches('\0').to_owned());
            return Ok(Credentials::Basic { username, password });
        }
        if !self.registry_token.is_empty() {
            return Ok(Credentials::Token(self.registry_token));
        }
        if !self.identity_token.is_empty() {
            return Ok(Credentials::Identity(self.identity_token));
        }
        Ok(Credentials::Anonymous)
    }
}

/// `https://index.docker.io/v1/` and `docker.io` are the same server.
pub(super) fn server_host(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    match address.split('/').next().unwrap_or(address) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// A parsed `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// RFC 9110 section 11.6.1, as far as registries use it: one scheme, quoted parameters.
    pub(crate) fn parse(header: &str) -> Option<Self> {
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

/// `name="value"` pairs; a comma inside quotes belongs to the value.
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

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a/b:pull,push""#;
        let bearer = |scope: Option<&str>| Challenge::Bearer {
            realm: "https://auth.x/token".into(),
            service: Some("x".into()),
            scope: scope.map(str::to_owned),
        };
        assert_eq!(Challenge::parse(header), Some(bearer(Some("repository:a/b:pull,push"))));
        assert_eq!(Challenge::parse(r#"bearer Realm="https://auth.x/token", service=x"#), Some(bearer(None)));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn credentials_are_bound_to_their_host() {
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        let given = |server: &str| Given {
            auth: STANDARD.encode("u:p\0\0"),
            server_address: server.into(),
            ..Given::default()
        };
        assert_eq!(given("").for_host("x.io").unwrap(), basic);
        assert_eq!(given("https://x.io/v2/").for_host("x.io").unwrap(), basic);
        assert_eq!(given("https://index.docker.io/v1/").for_host("docker.io").unwrap(), basic);
        assert_eq!(given("y.io").for_host("x.io").unwrap(), Credentials::Anonymous);
        assert!(Given { auth: "%%%".into(), ..Given::default() }.for_host("x.io").is_err());
    }
}
