//! Credentials of a registry, in the header `X-Registry-Auth` and in the body of a login.

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use berth_image::AuthConfig;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, de::DeserializeOwned};

/// Clients send base64 for URLs, some without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub serveraddress: String,
    pub identitytoken: String,
    pub registrytoken: String,
}

impl From<RegistryAuth> for AuthConfig {
    fn from(auth: RegistryAuth) -> Self {
        Self {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            registry_token: auth.registrytoken,
            identity_token: auth.identitytoken,
            server_address: auth.serveraddress,
        }
    }
}

/// The credentials of a request. As with dockerd, what cannot be read counts as none.
pub(crate) fn auth(headers: &HeaderMap) -> AuthConfig {
    document::<RegistryAuth>(headers, "x-registry-auth").into()
}

/// The credentials of a request that may need several registries, by those.
pub(crate) fn all_auth(headers: &HeaderMap) -> BTreeMap<String, AuthConfig> {
    let all: BTreeMap<String, RegistryAuth> = document(headers, "x-registry-config");
    all.into_iter().map(|(registry, auth)| (registry, auth.into())).collect()
}

fn document<T: DeserializeOwned + Default>(headers: &HeaderMap, name: &str) -> T {
    let header = headers.get(name).map(HeaderValue::as_bytes);
    let document = BASE64.decode(header.unwrap_or_default()).unwrap_or_default();
    serde_json::from_slice(&document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_with_and_without_padding() {
        let of = |text: &'static str| {
            auth(&HeaderMap::from_iter([(
                http::HeaderName::from_static("x-registry-auth"),
                HeaderValue::from_static(text),
            )]))
        };
        for text in [
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ==",
            "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ",
        ] {
            assert_eq!((of(text).username, of(text).password), ("u".to_owned(), "p".to_owned()));
        }
        assert!(of("nonsense").username.is_empty());
        assert!(auth(&HeaderMap::new()).username.is_empty());
    }
}
