//! Where a registry is really asked: `<config_path>/<host>/hosts.toml`, then `_default/hosts.toml`, then the host itself.
//!
//! The file is containerd's (docs/hosts.md): a `server`, and `[host."URL"]` tables that are tried first, in order. Read anew for
//! every pull, so that an edit needs no restart.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

/// One endpoint to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host:port/v2`, without a slash at the end.
    pub base: String,
    pub skip_verify: bool,
    pub ca: Vec<PathBuf>,
    pub headers: Vec<(String, String)>,
    /// Whether it resolves tags, or only serves content by digest.
    pub resolves: bool,
    /// A mirror is told which registry it stands for.
    pub namespace: Option<String>,
}

/// Loopback registries speak http unless told otherwise, as with Docker and containerd.
pub(crate) fn endpoints(config_path: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    for name in [host, "_default"] {
        let directory = config_path.join(name);
        let path = directory.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &directory, host).with_context(|| format!("in {}", path.display())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(vec![Endpoint::new(&default_server(host), host, false)?])
}

#[derive(Deserialize)]
struct Hosts {
    server: Option<String>,
    /// A table whose order counts: toml keeps it.
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Default, Deserialize)]
struct HostTable {
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: OneOrMany,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
}

fn parse(text: &str, directory: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    let hosts: Hosts = toml::from_str(text)?;
    let mut endpoints = Vec::new();
    for (url, table) in order(text, &hosts.host) {
        let table = HostTable::deserialize(table.clone()).with_context(|| format!("host {url:?}"))?;
        endpoints.push(endpoint(&url, host, &table, directory)?);
    }
    let server = hosts.server.unwrap_or_else(|| default_server(host));
    endpoints.push(endpoint(&server, host, &hosts.own, directory)?);
    // `pull` is what everything here needs; a host that cannot is for pushing only.
    Ok(endpoints)
}

/// The tables in the order of the text: toml sorts them by name unless a feature is on that other crates would pay for.
fn order(text: &str, hosts: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut tables: Vec<(String, toml::Value)> =
        hosts.iter().map(|(url, table)| (url.clone(), table.clone())).collect();
    tables.sort_by_key(|(url, _)| text.find(url.as_str()).unwrap_or(usize::MAX));
    tables
}

fn endpoint(url: &str, host: &str, table: &HostTable, directory: &Path) -> anyhow::Result<Endpoint> {
    let mut endpoint = Endpoint::new(url, host, table.override_path)?;
    endpoint.skip_verify = table.skip_verify;
    endpoint.ca = table.ca.list().into_iter().map(|path| directory.join(path)).collect();
    endpoint.headers = table
        .header
        .iter()
        .flat_map(|(name, values)| values.list().into_iter().map(|value| (name.clone(), value)))
        .collect();
    endpoint.resolves =
        table.capabilities.as_ref().is_none_or(|list| list.iter().any(|capability| capability == "resolve"));
    Ok(endpoint)
}

fn default_server(host: &str) -> String {
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.split(']').next())
        .unwrap_or_else(|| host.split(':').next().unwrap_or(host));
    let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match host {
        // The name of images, not of a server.
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        _ if loopback => format!("http://{host}"),
        _ => format!("https://{host}"),
    }
}

impl Endpoint {
    fn new(url: &str, host: &str, override_path: bool) -> anyhow::Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let parsed = reqwest::Url::parse(&url).map_err(|error| anyhow!("{url:?} is not a URL: {error}"))?;
        if !["http", "https"].contains(&parsed.scheme()) || parsed.host_str().is_none() {
            bail!("{url:?} is not an http or https URL");
        }
        let mut base = url.trim_end_matches('/').to_owned();
        if !override_path && !base.ends_with("/v2") {
            base += "/v2";
        }
        let own = default_server(host);
        let namespace = (!base.starts_with(&own)).then(|| host.to_owned());
        Ok(Self { base, skip_verify: false, ca: Vec::new(), headers: Vec::new(), resolves: true, namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, host: &str) -> Vec<String> {
        parse(text, Path::new("/c"), host).unwrap().into_iter().map(|endpoint| endpoint.base).collect()
    }

    #[test]
    fn hosts_are_tried_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://upstream.io"
            [host."http://z.local:5000"]
              capabilities = ["pull"]
              ca = "ca.crt"
              [host."http://z.local:5000".header]
                x-a = ["1", "2"]
            [host."https://a.local/prefix/v2/x"]
              override_path = true
              skip_verify = true
        "#;
        assert_eq!(
            bases(text, "upstream.io"),
            ["http://z.local:5000/v2", "https://a.local/prefix/v2/x", "https://upstream.io/v2"]
        );
        let endpoints = parse(text, Path::new("/c"), "upstream.io").unwrap();
        assert_eq!((endpoints[0].resolves, endpoints[0].ca[0].to_str()), (false, Some("/c/ca.crt")));
        assert_eq!((endpoints[0].headers.len(), endpoints[1].skip_verify), (2, true));
        assert_eq!((endpoints[0].namespace.as_deref(), endpoints[2].namespace.as_deref()), (Some("upstream.io"), None));
    }

    #[test]
    fn without_a_file_the_host_itself_is_asked() {
        let base = |host: &str| endpoints(Path::new("/nonexistent"), host).unwrap()[0].base.clone();
        for (host, expected) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost", "http://localhost/v2"),
            ("quay.io", "https://quay.io/v2"),
        ] {
            assert_eq!(base(host), expected);
        }
    }

    #[test]
    fn mistakes_are_errors() {
        for text in ["server = 1", "server = \"ftp://x\"", "[host.\"http://\"]", "[host.\"http://a\"]\nskip_verify = 3"]
        {
            assert!(parse(text, Path::new("/c"), "x.io").is_err(), "{text}");
        }
    }
}
