//! Credentials for pulls: those in the request, or else those that the node has itself.

mod auth_config;
mod docker_config;
mod helper;
mod image_match;
mod provider;

use std::path::PathBuf;

use berth_base::error::Result;

pub(super) use self::auth_config::{Credentials, server_host};
pub use self::{auth_config::AuthConfig, provider::CredentialProviders};

use crate::reference::Reference;

/// Where to find the node's own credentials. The files are read again for every pull that needs
/// them, so a rotated secret takes effect without a restart.
#[derive(Clone, Debug)]
pub struct CredentialSources {
    /// Docker's `config.json`; it may be absent.
    pub auth_file: PathBuf,
    pub providers: Option<CredentialProviders>,
}

impl CredentialSources {
    /// The credentials for a pull of `reference`, where `auth` came with the request. Anonymous if
    /// there are none.
    ///
    /// # Errors
    /// `InvalidArgument` if `auth` cannot be parsed; `FailedPrecondition` if a file of the node
    /// cannot be parsed, or a helper or provider fails.
    pub(super) async fn credentials(
        &self,
        auth: AuthConfig,
        reference: &Reference,
    ) -> Result<Credentials> {
        if !auth.is_empty() {
            return auth.for_host(&reference.host);
        }
        let found = docker_config::find(&self.auth_file, reference).await?;
        match &self.providers {
            // After the file, because a plugin may have to ask a cloud.
            Some(providers) if found == Credentials::Anonymous => {
                provider::find(providers, reference).await
            }
            _ => Ok(found),
        }
    }
}
