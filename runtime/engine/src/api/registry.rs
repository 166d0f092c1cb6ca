//! Credentials of a registry, in the header `X-Registry-Auth` and in the body of a login.

use berth_image::AuthConfig;
use serde::Deserialize;

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
