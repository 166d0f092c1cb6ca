//! What requests about images bring, in berth's types.

use berth_image::AuthConfig;
use berth_proto::v1;

pub(crate) fn auth(auth: Option<v1::AuthConfig>) -> AuthConfig {
    let auth = auth.unwrap_or_default();
    AuthConfig {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        registry_token: auth.registry_token,
        identity_token: auth.identity_token,
        server_address: auth.server_address,
    }
}
