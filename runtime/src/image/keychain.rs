//! Credentials of the node, for pulls that bring none: docker's `config.json`, and the helpers that it names.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::Context;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{
    auth::{Credentials, Given, server_host},
    fits,
    reference::Reference,
};
use crate::error::{Error, Kind, Result};

/// A helper may ask a cloud.
const TIMEOUT: Duration = Duration::from_secs(30);
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    /// Helpers by host.
    cred_helpers: BTreeMap<String, String>,
    /// The helper for every other host.
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

/// What a helper answers to `get`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What the file at `path` has for `reference`; a missing file has nothing. Read at every pull.
///
/// # Errors
/// `FailedPrecondition` for a file that cannot be understood, and for a helper that fails.
pub(super) async fn find(path: &Path, reference: &Reference) -> Result<Credentials> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Credentials::Anonymous),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    let wrong = |what: String| Error::precondition(format!("{}: {what}", path.display()));
    let config: Config = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let helper = best(&config.cred_helpers, reference).map(String::as_str);
    let helper = helper.or_else(|| Some(config.creds_store.as_str()).filter(|name| !name.is_empty()));
    let found = match (helper, best(&config.auths, reference)) {
        (Some(name), _) => ask(name, &reference.host).await.map_err(|error| wrong(error.message))?,
        (None, Some(entry)) => Some(Given {
            auth: entry.auth.clone(),
            username: entry.username.clone(),
            password: entry.password.clone(),
            identity_token: entry.identitytoken.clone(),
            registry_token: entry.registrytoken.clone(),
            server_address: String::new(),
        }),
        (None, None) => None,
    };
    match found {
        Some(given) => given.for_host(&reference.host).map_err(|error| wrong(error.message)),
        None => Ok(Credentials::Anonymous),
    }
}

/// The entry whose key fits best: a host, in whose labels a `*` is any text, with or without the start of a repository's path.
pub(super) fn best<'a, T>(entries: &'a BTreeMap<String, T>, reference: &Reference) -> Option<&'a T> {
    let fitting = entries.iter().filter_map(|(key, entry)| Some((fit(key, reference)?, entry)));
    fitting.max_by_key(|(fit, _)| *fit).map(|(_, entry)| entry)
}

/// How well: by the length of the path, then a host without `*`.
pub(super) fn fit(key: &str, reference: &Reference) -> Option<(usize, bool)> {
    let plain = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (_, path) = plain.split_once('/').unwrap_or((plain, ""));
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = server_host(key);
    let labels = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (wanted, actual) = (labels(host), labels(&reference.host));
    let same = wanted.len() == actual.len() && wanted.iter().zip(&actual).all(|(pattern, label)| fits(pattern, label));
    let below = path.is_empty()
        || reference.repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (same && below).then_some((path.len(), !host.contains('*')))
}

/// `docker-credential-NAME get`: the host goes in, JSON comes out. One that has nothing for the host says so and fails.
async fn ask(name: &str, host: &str) -> Result<Option<Given>> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        return Err(Error::precondition(format!("{name:?} is not the name of a credential helper")));
    }
    let mut command = Command::new(&program);
    command.arg("get");
    let server = if host == "docker.io" { DOCKER_HUB } else { host };
    let output = converse(&program, command, server.as_bytes()).await?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        return if said.contains("credentials not found") {
            Ok(None)
        } else {
            Err(Error::precondition(format!("{program}: {}: {said}", output.status)))
        };
    }
    let helped: Helped = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::precondition(format!("{program}: its answer: {error}")))?;
    Ok(Some(match helped.username.as_str() {
        "<token>" => Given { identity_token: helped.secret, ..Given::default() },
        _ => Given { username: helped.username, password: helped.secret, ..Given::default() },
    }))
}

/// Runs a program that answers what it is told.
pub(super) async fn converse(name: &str, mut command: Command, input: &[u8]) -> Result<Output> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.kill_on_drop(true).spawn().with_context(|| format!("execute {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it will say what it misses.
        let _ = stdin.write_all(input).await;
    }
    let late = |_| Error::new(Kind::DeadlineExceeded, format!("{name}: no answer within {} s", TIMEOUT.as_secs()));
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.map_err(late)?;
    Ok(output.with_context(|| format!("execute {name}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_entry_counts() {
        let keys = [
            "https://index.docker.io/v1/",
            "*.example.com",
            "a.example.com",
            "a.example.com/team",
            "b.io:5000/v2/",
            "*.ecr.*.cloud.com",
            "app*.k8s.io",
        ];
        let entries: BTreeMap<String, &str> = keys.into_iter().map(|key| (key.to_owned(), key)).collect();
        for (name, expected) in [
            ("busybox", Some("https://index.docker.io/v1/")),
            ("a.example.com/app", Some("a.example.com")),
            ("a.example.com/team/app", Some("a.example.com/team")),
            ("a.example.com/teams/app", Some("a.example.com")),
            ("b.example.com/team/app", Some("*.example.com")),
            ("x.b.example.com/app", None),
            ("1.ecr.eu.cloud.com/app", Some("*.ecr.*.cloud.com")),
            ("app7.k8s.io/x", Some("app*.k8s.io")),
            ("apps.x.k8s.io/x", None),
            ("b.io:5000/app", Some("b.io:5000/v2/")),
            ("b.io/app", None),
        ] {
            assert_eq!(best(&entries, &Reference::parse(name).unwrap()).copied(), expected, "{name}");
        }
    }
}
