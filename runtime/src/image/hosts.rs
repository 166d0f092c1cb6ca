//! Where a registry is really asked: `<config_path>/<host>/hosts.toml`, then `_default/hosts.toml`, then the host itself.
//!
//! The file is containerd's (docs/hosts.md): a `server`, and `[host."URL"]` tables that are tried first, in order. A directory without
//! one is Docker's: `*.crt` are authorities, `*.cert` and `*.key` what the node shows. Read anew for every pull, so that an edit needs no
//! restart.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

/// One endpoint to try.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// `https://host:port/v2`, without a slash at the end.
    pub base: String,
    pub skip_verify: bool,
    pub ca: Vec<PathBuf>,
    /// What the node shows in return.
    pub client: Option<Pair>,
    pub headers: Vec<(String, String)>,
    /// Whether it resolves tags, or only serves content by digest.
    pub resolves: bool,
    /// A mirror is told which registry it stands for.
    pub namespace: Option<String>,
}

/// A certificate and its key, which may be in the same file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

/// Loopback registries speak http unless told otherwise, as with Docker and containerd.
pub(crate) fn endpoints(config_path: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    // Where a file system takes no colon, containerd's users write `host_port_`.
    let without_colon = host.replace(':', "_") + "_";
    for name in [host, &without_colon, "_default"] {
        let directory = config_path.join(name);
        let path = directory.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &directory, host).with_context(|| format!("in {}", path.display())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        if directory.is_dir() {
            let mut endpoint = Endpoint::new(&default_server(host), host, false)?;
            endpoint.trust_as_docker(&directory).with_context(|| format!("read {}", directory.display()))?;
            return Ok(vec![endpoint]);
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
    client: Client,
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

/// One file of certificate and key, or a list of them, each such a file or a pair.
#[derive(Clone, Default, Deserialize)]
#[serde(untagged)]
enum Client {
    #[default]
    None,
    One(String),
    Many(Vec<OneOrMany>),
}

impl Client {
    fn pair(&self, directory: &Path) -> anyhow::Result<Option<Pair>> {
        let files = match self {
            Self::None => return Ok(None),
            Self::One(file) => vec![file.clone()],
            Self::Many(pairs) if pairs.len() > 1 => bail!("client: one certificate can be shown, not {}", pairs.len()),
            Self::Many(pairs) => pairs.iter().flat_map(OneOrMany::list).collect(),
        };
        let path = |name: &String| directory.join(name);
        match files.as_slice() {
            [] => Ok(None),
            [certificate] => Ok(Some(Pair { certificate: path(certificate), key: None })),
            [certificate, key] => {
                let key = Some(key).filter(|key| !key.is_empty()).map(path);
                Ok(Some(Pair { certificate: path(certificate), key }))
            }
            _ => bail!("client: a certificate and its key, not {} files", files.len()),
        }
    }
}

pub(super) fn parse(text: &str, directory: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    let hosts: Hosts = toml::from_str(text)?;
    let mut endpoints = Vec::new();
    for (url, table) in order(text, &hosts.host) {
        let table = HostTable::deserialize(table.clone()).with_context(|| format!("host {url:?}"))?;
        endpoints.push(endpoint(&url, host, &table, directory)?);
    }
    let server = hosts.server.unwrap_or_else(|| default_server(host));
    endpoints.push(endpoint(&server, host, &hosts.own, directory)?);
    Ok(endpoints.into_iter().flatten().collect())
}

/// The tables in the order of the text: toml sorts them by name unless a feature is on that other crates would pay for.
fn order(text: &str, hosts: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut tables: Vec<(String, toml::Value)> =
        hosts.iter().map(|(url, table)| (url.clone(), table.clone())).collect();
    tables.sort_by_key(|(url, _)| text.find(url.as_str()).unwrap_or(usize::MAX));
    tables
}

/// `None` for one that is there for pushing only.
fn endpoint(url: &str, host: &str, table: &HostTable, directory: &Path) -> anyhow::Result<Option<Endpoint>> {
    let can = |wanted: &str| table.capabilities.as_ref().is_none_or(|list| list.iter().any(|has| has == wanted));
    let mut endpoint = Endpoint::new(url, host, table.override_path)?;
    endpoint.resolves = can("resolve");
    endpoint.client = table.client.pair(directory).with_context(|| format!("host {url:?}"))?;
    endpoint.skip_verify = table.skip_verify;
    endpoint.ca = table.ca.list().into_iter().map(|path| directory.join(path)).collect();
    endpoint.headers = table
        .header
        .iter()
        .flat_map(|(name, values)| values.list().into_iter().map(|value| (name.clone(), value)))
        .collect();
    Ok(can("pull").then_some(endpoint))
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
    pub(super) fn new(url: &str, host: &str, override_path: bool) -> anyhow::Result<Self> {
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
        let (ca, client, headers) = (Vec::new(), None, Vec::new());
        Ok(Self { base, skip_verify: false, ca, client, headers, resolves: true, namespace })
    }

    /// docs.docker.com/engine/security/certificates.
    fn trust_as_docker(&mut self, directory: &Path) -> anyhow::Result<()> {
        let files = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
        let mut files = files.collect::<io::Result<Vec<_>>>()?;
        files.sort_unstable();
        for file in files {
            match file.extension().and_then(OsStr::to_str) {
                Some("crt") => self.ca.push(file),
                Some("cert") if self.client.is_some() => {
                    bail!("one client certificate can be shown; {} is another", file.display())
                }
                Some("cert") => {
                    let key = file.with_extension("key");
                    if !key.exists() {
                        bail!("{} has no {} beside it", file.display(), key.display());
                    }
                    self.client = Some(Pair { certificate: file, key: Some(key) });
                }
                _ => {}
            }
        }
        if let (true, Some(plain)) = (!self.ca.is_empty() || self.client.is_some(), self.base.strip_prefix("http://")) {
            // Loopback, where http is only the default.
            self.base = format!("https://{plain}");
        }
        Ok(())
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
              client = [["node.cert", "node.key"]]
              [host."http://z.local:5000".header]
                x-a = ["1", "2"]
            [host."http://push.local"]
              capabilities = ["resolve", "push"]
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
        let pair = Pair { certificate: "/c/node.cert".into(), key: Some("/c/node.key".into()) };
        assert_eq!((&endpoints[0].client, &endpoints[1].client), (&Some(pair), &None));
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
    fn a_client_certificate_comes_in_three_forms() {
        for (client, expected) in [
            ("\"both.pem\"", Some(("/c/both.pem", None))),
            ("[\"both.pem\"]", Some(("/c/both.pem", None))),
            ("[[\"/a.cert\", \"a.key\"]]", Some(("/a.cert", Some("/c/a.key")))),
            ("[[\"both.pem\", \"\"]]", Some(("/c/both.pem", None))),
            ("[]", None),
        ] {
            let endpoints = parse(&format!("client = {client}"), Path::new("/c"), "x.io").unwrap();
            let pair = endpoints[0].client.as_ref();
            let found = pair
                .map(|pair| (pair.certificate.to_str().unwrap(), pair.key.as_ref().map(|key| key.to_str().unwrap())));
            assert_eq!(found, expected, "{client}");
        }
    }

    #[test]
    fn without_hosts_toml_a_directory_is_dockers() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.io:5000");
        fs::create_dir(&directory).unwrap();
        for name in ["b.crt", "a.crt", "node.cert", "node.key", "other.key", "README"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let found = endpoints(root.path(), "r.io:5000").unwrap().remove(0);
        let pair = Pair { certificate: directory.join("node.cert"), key: Some(directory.join("node.key")) };
        assert_eq!(
            (found.base.as_str(), found.ca),
            ("https://r.io:5000/v2", vec![directory.join("a.crt"), directory.join("b.crt")])
        );
        assert_eq!(found.client, Some(pair));
        fs::write(directory.join("second.cert"), "").unwrap();
        assert!(format!("{:#}", endpoints(root.path(), "r.io:5000").unwrap_err()).contains("is another"));
        fs::rename(&directory, root.path().join("r.io_5000_")).unwrap();
        assert!(endpoints(root.path(), "r.io:5000").is_err());
    }

    #[test]
    fn mistakes_are_errors() {
        for text in [
            "server = 1",
            "server = \"ftp://x\"",
            "[host.\"http://\"]",
            "[host.\"http://a\"]\nskip_verify = 3",
            "client = [\"a\", \"b\"]",
            "client = [[\"a\", \"b\", \"c\"]]",
        ] {
            assert!(parse(text, Path::new("/c"), "x.io").is_err(), "{text}");
        }
    }
}
