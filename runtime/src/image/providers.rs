//! Credentials by the kubelet's plugins, for pulls that bring none: a `CredentialProviderConfig` (kubelet.config.k8s.io) names programs,
//! and images that they know (KEP 2133).

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use super::{
    auth::Credentials,
    keychain::{best, converse, fit},
    reference::Reference,
};
use crate::{
    config::CredentialProviders,
    error::{Error, Result},
};

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    /// Of the program, and nothing else.
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

/// `CredentialProviderResponse`. How long it may be kept does not matter: the kubelet pulls most images, and keeps its own.
#[derive(Debug, Deserialize)]
struct Response {
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

#[derive(Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// What the first provider that knows `reference` has for it. The configuration is YAML or JSON, and read anew.
///
/// # Errors
/// `FailedPrecondition` for a file that cannot be understood, and for a provider that fails.
pub(super) async fn find(plugins: &CredentialProviders, reference: &Reference) -> Result<Credentials> {
    let CredentialProviders { config, bin_dir } = plugins;
    let wrong = |what: String| Error::precondition(format!("{}: {what}", config.display()));
    let text = fs::read_to_string(config).map_err(|error| wrong(error.to_string()))?;
    let config: Config = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for provider in &config.providers {
        let knows = provider.match_images.iter().any(|pattern| fit(pattern, reference).is_some());
        if !knows {
            continue;
        }
        let response = ask(provider, bin_dir, reference).await.map_err(|error| wrong(error.message))?;
        if let Some(Auth { username, password }) = best(&response.auth, reference) {
            return Ok(Credentials::Basic { username: username.clone(), password: password.clone() });
        }
    }
    Ok(Credentials::Anonymous)
}

async fn ask(provider: &Provider, programs: &Path, reference: &Reference) -> Result<Response> {
    let Provider { name, api_version, args, env, .. } = provider;
    if name.contains('/') || name.is_empty() || name.starts_with('.') {
        return Err(Error::precondition(format!("{name:?} is not the name of a program")));
    }
    let mut command = Command::new(programs.join(name));
    command.args(args).envs(env.iter().map(|variable| (&variable.name, &variable.value)));
    let request =
        json!({ "apiVersion": api_version, "kind": "CredentialProviderRequest", "image": reference.to_string() });
    let output = converse(name, command, request.to_string().as_bytes()).await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::precondition(format!("{name}: {}: {}", output.status, said.trim())));
    }
    let answer = serde_json::from_slice(&output.stdout);
    answer.map_err(|error| Error::precondition(format!("{name}: its answer: {error}")))
}
