//! The node's own credentials: docker's `config.json`, and the credential helpers that it names
//! (docs.docker.com/reference/cli/docker/login, "Credential stores").

use std::{collections::BTreeMap, io, path::Path};

use anyhow::Context;
use berth_base::error::{Error, Result};
use serde::Deserialize;
use tokio::process::Command;

use super::{
    auth_config::{AuthConfig, Credentials},
    helper,
    image_match::closest,
};
use crate::reference::Reference;

/// What docker calls Docker Hub when it asks a helper.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    /// Names of helpers by host.
    cred_helpers: BTreeMap<String, String>,
    /// The name of the helper for every other host.
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl From<&Entry> for AuthConfig {
    fn from(entry: &Entry) -> Self {
        Self {
            auth: entry.auth.clone(),
            username: entry.username.clone(),
            password: entry.password.clone(),
            identity_token: entry.identitytoken.clone(),
            registry_token: entry.registrytoken.clone(),
            // The key of the entry has already been matched against the image.
            server_address: String::new(),
        }
    }
}

/// What a helper answers to `get`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperResponse {
    username: String,
    secret: String,
}

/// Looks up the credentials for `reference` in the file at `path`, which may be absent.
///
/// # Errors
/// `FailedPrecondition` if the file cannot be parsed or a helper fails.
pub(super) async fn find(path: &Path, reference: &Reference) -> Result<Credentials> {
    let text = match tokio::fs::read(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Credentials::Anonymous),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    let wrong = |what: String| Error::precondition(format!("{}: {what}", path.display()));
    let config: Config = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    // As with docker, a helper takes precedence over secrets in the file.
    let auth = match helper_name(&config, reference) {
        Some(name) => {
            ask_helper(name, &reference.host).await.map_err(|error| wrong(error.message))?
        }
        None => closest(&config.auths, reference).map(AuthConfig::from),
    };
    match auth {
        Some(auth) => auth.for_host(&reference.host).map_err(|error| wrong(error.message)),
        None => Ok(Credentials::Anonymous),
    }
}

fn helper_name<'a>(config: &'a Config, reference: &Reference) -> Option<&'a str> {
    let store = Some(config.creds_store.as_str()).filter(|name| !name.is_empty());
    closest(&config.cred_helpers, reference).map(String::as_str).or(store)
}

/// Runs `docker-credential-NAME get`, which reads the host and writes JSON. `None` if it has no
/// credentials for the host.
async fn ask_helper(name: &str, host: &str) -> Result<Option<AuthConfig>> {
    // The program is looked up in PATH. A slash in the name would make it a path instead.
    if name.contains('/') {
        return Err(Error::precondition(format!(
            "{name:?} is not the name of a credential helper"
        )));
    }
    let program = format!("docker-credential-{name}");
    let mut command = Command::new(&program);
    command.arg("get");
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    let output = helper::run(&program, command, server.as_bytes()).await?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        // The protocol has no exit code for "not found", only this text, which all helpers share.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(Error::precondition(format!("{program}: {}: {said}", output.status)));
    }
    let response: HelperResponse = serde_json::from_slice(&output.stdout).map_err(|error| {
        Error::precondition(format!("{program}: its answer is not as expected: {error}"))
    })?;
    Ok(Some(match response.username.as_str() {
        // The protocol's way to say that the secret is an identity token.
        "<token>" => AuthConfig { identity_token: response.secret, ..AuthConfig::default() },
        _ => AuthConfig {
            username: response.username,
            password: response.secret,
            ..AuthConfig::default()
        },
    }))
}
