//! The node's own credentials from the kubelet's credential provider plugins (KEP 2133). A
//! `CredentialProviderConfig` (kubelet.config.k8s.io) lists the programs, and for each the images
//! for which it has credentials.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use berth_base::error::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use super::{
    auth_config::Credentials,
    helper,
    image_match::{closest, matches_image},
};
use crate::reference::Reference;

/// The kubelet's credential provider plugins (KEP 2133).
#[derive(Clone, Debug)]
pub struct CredentialProviders {
    /// A `CredentialProviderConfig`, in YAML or JSON.
    pub config: PathBuf,
    /// The directory of the programs.
    pub bin_dir: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    /// The program's name in `bin_dir`.
    name: String,
    match_images: Vec<String>,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// `CredentialProviderResponse`. Its cache duration is ignored: for the kubelet's pulls, which are
/// most of them, the kubelet runs the plugins itself and caches their responses.
#[derive(Debug, Deserialize)]
struct Response {
    #[serde(default)]
    auth: BTreeMap<String, BasicAuth>,
}

#[derive(Debug, Deserialize)]
struct BasicAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The credentials of the first provider that has some for `reference`.
///
/// # Errors
/// `FailedPrecondition` if the configuration cannot be parsed or a provider fails.
pub(super) async fn find(
    providers: &CredentialProviders,
    reference: &Reference,
) -> Result<Credentials> {
    let CredentialProviders { config: path, bin_dir } = providers;
    let wrong = |what: String| Error::precondition(format!("{}: {what}", path.display()));
    let text = tokio::fs::read_to_string(path).await.map_err(|error| wrong(error.to_string()))?;
    // JSON is a subset of YAML, so one parser reads both.
    let config: Config = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for provider in &config.providers {
        if !provider.knows(reference) {
            continue;
        }
        let response =
            ask(provider, bin_dir, reference).await.map_err(|error| wrong(error.message))?;
        // A response may contain credentials for a registry and others for repositories in it.
        if let Some(BasicAuth { username, password }) = closest(&response.auth, reference) {
            return Ok(Credentials::Basic {
                username: username.clone(),
                password: password.clone(),
            });
        }
    }
    Ok(Credentials::Anonymous)
}

impl Provider {
    fn knows(&self, reference: &Reference) -> bool {
        self.match_images.iter().any(|pattern| matches_image(pattern, reference).is_some())
    }
}

/// Runs one provider with a `CredentialProviderRequest`.
async fn ask(provider: &Provider, bin_dir: &Path, reference: &Reference) -> Result<Response> {
    let Provider { name, api_version, args, env, .. } = provider;
    // As in the kubelet, so that nothing outside `bin_dir` can be run.
    if name.contains('/') || name.is_empty() || name.starts_with('.') {
        return Err(Error::precondition(format!("{name:?} is not the name of a program")));
    }
    let mut command = Command::new(bin_dir.join(name));
    // In addition to berthd's own environment, as in the kubelet: plugins need PATH, HOME and
    // HTTPS_PROXY.
    command.args(args).envs(env.iter().map(|variable| (&variable.name, &variable.value)));
    let request = json!({
        "apiVersion": api_version,
        "kind": "CredentialProviderRequest",
        "image": reference.to_string(),
    });
    let output = helper::run(name, command, request.to_string().as_bytes()).await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::precondition(format!("{name}: {}: {}", output.status, said.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Error::precondition(format!("{name}: its answer is not as expected: {error}"))
    })
}
