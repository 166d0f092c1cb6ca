//! The credentials for one pull, and the form in which a request brings them.

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::error::{Error, Result};

/// What a registry gets to see when it asks for credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Credentials {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token, which only the registry's token server sees.
    IdentityToken(String),
    /// A bearer token that replaces the one which the token server would issue.
    RegistryToken(String),
}

impl Credentials {
    /// Whether they contain a secret.
    pub(crate) fn are_secret(&self) -> bool {
        *self != Self::Anonymous
    }
}

/// CRI's `AuthConfig` of a PullImage request, field by field. Docker's `config.json` has the same
/// fields.
#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    pub username: String,
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    pub registry_token: String,
    pub identity_token: String,
    /// The only host that may see them. Empty means the host of the image.
    pub server_address: String,
}

impl AuthConfig {
    /// Whether there are no credentials in it. An address alone is none.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { username, password, auth, registry_token, identity_token, server_address: _ } =
            self;
        [username, password, auth, registry_token, identity_token].into_iter().all(String::is_empty)
    }

    /// The credentials that `host` may see. If there are several kinds, the first of these counts:
    /// user and password, `auth`, registry token, identity token.
    ///
    /// # Errors
    /// `InvalidArgument` if `auth` is not base64 of `user:password`.
    pub(crate) fn for_host(self, host: &str) -> Result<Credentials> {
        // Credentials for another registry must not leak to this one. That is no error, because the
        // image may be public.
        if !self.server_address.is_empty() && server_host(&self.server_address) != host {
            return Ok(Credentials::Anonymous);
        }
        if !self.username.is_empty() {
            return Ok(Credentials::Basic { username: self.username, password: self.password });
        }
        if !self.auth.is_empty() {
            return decode_basic(&self.auth);
        }
        if !self.registry_token.is_empty() {
            return Ok(Credentials::RegistryToken(self.registry_token));
        }
        if !self.identity_token.is_empty() {
            return Ok(Credentials::IdentityToken(self.identity_token));
        }
        Ok(Credentials::Anonymous)
    }
}

fn decode_basic(auth: &str) -> Result<Credentials> {
    let wrong = || Error::invalid("auth is not base64 of \"user:password\"");
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    let (username, password) = text.split_once(':').ok_or_else(wrong)?;
    Ok(Credentials::Basic {
        username: username.to_owned(),
        // Docker trims NUL bytes here as well, because some tools pad the text with them.
        password: password.trim_matches('\0').to_owned(),
    })
}

/// The host in a server's address, which may be a URL. Docker Hub has several addresses, which all
/// mean `docker.io`.
pub(crate) fn server_host(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    match address.split('/').next().unwrap_or(address) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_bound_to_their_host() {
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        let auth = |server: &str| AuthConfig {
            auth: STANDARD.encode("u:p\0\0"),
            server_address: server.into(),
            ..AuthConfig::default()
        };
        assert_eq!(auth("").for_host("x.io").unwrap(), basic);
        assert_eq!(auth("https://x.io/v2/").for_host("x.io").unwrap(), basic);
        assert_eq!(auth("https://index.docker.io/v1/").for_host("docker.io").unwrap(), basic);
        assert_eq!(auth("y.io").for_host("x.io").unwrap(), Credentials::Anonymous);
        assert!(
            AuthConfig { auth: "%%%".into(), ..AuthConfig::default() }.for_host("x.io").is_err()
        );
    }
}
