//! Whether the registries that are configured by name can be reached, for `berthd check`.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use berth_base::blocking::spawn_blocking;
use futures_util::future::join_all;
use reqwest::Method;

use super::{
    client::{Clients, Purpose},
    hosts::{self, Endpoint},
    transport::{Headers, Transport},
};

/// How long one endpoint may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many endpoints are asked: a directory with more of them is asked in part.
const MOST: usize = 32;

/// One endpoint of a registry, and whether it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The registry that is configured, as in `registry.example.com:5000`.
    pub host: String,
    /// The URL that was asked, or the directory whose configuration is not valid.
    pub endpoint: String,
    /// Why not.
    pub outcome: Result<(), String>,
}

/// Asks each endpoint of the registries below `config_path`, all at once, for three seconds at most.
/// Any response counts, as most registries ask for credentials first; none of the node's are shown,
/// but for its certificate. What is said in `_default` is for no registry by name, and is not asked.
pub async fn reach_registries(config_path: &Path) -> Vec<Reached> {
    let directory = config_path.to_owned();
    let configured = spawn_blocking(move || configured(&directory)).await.unwrap_or_default();
    join_all(configured.into_iter().take(MOST).map(reach)).await
}

/// The endpoints of each registry that has a directory. Blocks.
fn configured(config_path: &Path) -> Vec<(String, Result<Endpoint, Reached>)> {
    let names = fs::read_dir(config_path).into_iter().flatten().flatten();
    let hosts: BTreeSet<String> =
        names.filter_map(|entry| host_of(entry.file_name().to_str()?)).collect();
    let mut found = Vec::new();
    for host in hosts {
        match hosts::endpoints(config_path, &host) {
            Ok(endpoints) => found.extend(endpoints.into_iter().map(|it| (host.clone(), Ok(it)))),
            Err(error) => {
                let outcome = Err(format!("{error:#}"));
                let endpoint = config_path.join(&host).display().to_string();
                found.push((host.clone(), Err(Reached { host, endpoint, outcome })));
            }
        }
    }
    found
}

/// The registry that a directory is for: `host_5000_` is containerd's spelling of `host:5000`.
fn host_of(name: &str) -> Option<String> {
    if name == "_default" || name.starts_with('.') {
        return None;
    }
    let ported = name.strip_suffix('_').and_then(|name| name.rsplit_once('_'));
    Some(ported.map_or_else(|| name.to_owned(), |(host, port)| format!("{host}:{port}")))
}

async fn reach((host, endpoint): (String, Result<Endpoint, Reached>)) -> Reached {
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(reached) => return reached,
    };
    let base = endpoint.base.clone();
    let asked = tokio::time::timeout(PATIENCE, ask(endpoint)).await;
    let outcome =
        asked.unwrap_or_else(|_| Err(format!("{base}: no answer within {} s", PATIENCE.as_secs())));
    Reached { host, endpoint: base, outcome }
}

async fn ask(endpoint: Endpoint) -> Result<(), String> {
    let made =
        spawn_blocking(move || Transport::new(&endpoint, &Clients::default(), Purpose::Pull));
    let transport = made.await.map_err(|error| error.to_string())?;
    let transport = transport.map_err(|error| format!("{error:#}"))?;
    let mut url = transport.base.clone();
    url.set_path(&format!("{}/", url.path().trim_end_matches('/')));
    let headers = Headers { own: &transport.headers, open: &reqwest::header::HeaderMap::new() };
    let reply = transport.follow(&Method::GET, &url, headers).await;
    let status = reply.map_err(|error| error.to_string())?.response.status();
    match status.is_server_error() {
        true => Err(format!("{url}: {status}")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_which_registry_it_is_for() {
        for (name, host) in [
            ("registry.example", Some("registry.example")),
            ("localhost:5000", Some("localhost:5000")),
            ("localhost_5000_", Some("localhost:5000")),
            ("_default", None),
            (".git", None),
        ] {
            assert_eq!(host_of(name).as_deref(), host, "{name}");
        }
    }
}
