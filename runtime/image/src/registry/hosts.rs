//! The endpoints of a registry: those in `<config_path>/<host>/hosts.toml`, or else in
//! `_default/hosts.toml`, or else the host itself.
//!
//! The format is containerd's (docs/hosts.md): a `server`, and `[host."URL"]` tables that are tried
//! before it, in the order of the file. A directory without that file is read as one of Docker's:
//! `*.crt` are certificate authorities, `*.cert` and `*.key` a client certificate and its key.
//! Everything is read again for every pull, so changes need no restart.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

/// One endpoint of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// `https://host:port/v2`, without a slash at the end.
    pub base: String,
    pub skip_verify: bool,
    /// Certificate authorities to trust in addition to the machine's.
    pub ca: Vec<PathBuf>,
    /// The certificate that the node shows to the server.
    pub client: Option<ClientCertificate>,
    pub headers: Vec<(String, String)>,
    /// Whether it may resolve tags. Otherwise it is only asked for content by digest.
    pub resolves: bool,
    /// The registry that this endpoint mirrors, which it is told in the query parameter `ns`.
    pub namespace: Option<String>,
}

/// A client certificate. Without `key`, the key is in the same file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

/// The endpoints of the registry `host`, in the order in which to try them.
///
/// # Errors
/// A file cannot be read or parsed. It is never skipped, because its purpose may be to keep pulls
/// from going anywhere else.
pub(super) fn endpoints(config_path: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    let configured = configured(config_path, host)?;
    Ok(configured.into_iter().filter(|host| host.pulls).map(|host| host.endpoint).collect())
}

/// The endpoint of the registry `host` that images are pushed to, if there is one: the first one that
/// is said to take them, else the server. A mirror whose capabilities nobody has listed takes none.
///
/// # Errors
/// As for `endpoints`.
pub(super) fn push_endpoint(config_path: &Path, host: &str) -> anyhow::Result<Option<Endpoint>> {
    let configured = configured(config_path, host)?;
    Ok(configured.into_iter().find(|host| host.pushes).map(|host| host.endpoint))
}

/// The index that searches a registry.
///
/// # Errors
/// `host` is none.
pub(super) fn index_endpoint(host: &str) -> anyhow::Result<Endpoint> {
    let url = match host {
        "docker.io" => "https://index.docker.io/v1".to_owned(),
        _ => format!("{}/v1", default_server(host)),
    };
    Ok(Endpoint { namespace: None, ..Endpoint::new(&url, host, true)? })
}

/// An endpoint, and what it is for.
#[derive(Debug)]
struct ConfiguredHost {
    endpoint: Endpoint,
    pulls: bool,
    pushes: bool,
}

impl ConfiguredHost {
    /// One that nothing has been said about.
    fn of(endpoint: Endpoint) -> Self {
        Self { endpoint, pulls: true, pushes: true }
    }
}

fn configured(config_path: &Path, host: &str) -> anyhow::Result<Vec<ConfiguredHost>> {
    // containerd accepts `host_port_` too, for filesystems that do not allow a colon.
    let without_colon = host.replace(':', "_") + "_";
    for name in [host, &without_colon, "_default"] {
        let directory = config_path.join(name);
        let path = directory.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => {
                return parse_all(&text, &directory, host)
                    .with_context(|| format!("in {}", path.display()));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        if directory.is_dir() {
            let mut endpoint = Endpoint::new(&default_server(host), host, false)?;
            endpoint
                .trust_as_docker(&directory)
                .with_context(|| format!("read {}", directory.display()))?;
            return Ok(vec![ConfiguredHost::of(endpoint)]);
        }
    }
    Ok(vec![ConfiguredHost::of(Endpoint::new(&default_server(host), host, false)?)])
}

#[derive(Deserialize)]
struct HostsToml {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    /// Options at the top level of the file; they are about `server`.
    #[serde(flatten)]
    server_options: HostOptions,
}

#[derive(Default, Deserialize)]
struct HostOptions {
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: OneOrMany,
    #[serde(default)]
    client: ClientFiles,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

impl HostOptions {
    /// Without a list of capabilities, a host has all of them.
    fn can(&self, capability: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|list| list.iter().any(|has| has == capability))
    }
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

/// A file with certificate and key, or a list of such files or of pairs of files.
#[derive(Clone, Default, Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    #[default]
    None,
    One(String),
    Many(Vec<OneOrMany>),
}

impl ClientFiles {
    fn certificate(&self, directory: &Path) -> anyhow::Result<Option<ClientCertificate>> {
        let files = match self {
            Self::None => return Ok(None),
            Self::One(file) => vec![file.clone()],
            // reqwest takes only one. Choosing one silently could be the wrong choice.
            Self::Many(pairs) if pairs.len() > 1 => {
                bail!("client: one certificate can be shown, not {}", pairs.len())
            }
            Self::Many(pairs) => pairs.iter().flat_map(OneOrMany::list).collect(),
        };
        match files.as_slice() {
            [] => Ok(None),
            [certificate] => {
                Ok(Some(ClientCertificate { certificate: directory.join(certificate), key: None }))
            }
            [certificate, key] => Ok(Some(ClientCertificate {
                certificate: directory.join(certificate),
                key: Some(key).filter(|key| !key.is_empty()).map(|key| directory.join(key)),
            })),
            _ => bail!("client: a certificate and its key, not {} files", files.len()),
        }
    }
}

/// Parses the text of the hosts.toml in `directory`.
///
/// # Errors
/// The text is not TOML, or not a valid hosts.toml.
fn parse_all(text: &str, directory: &Path, host: &str) -> anyhow::Result<Vec<ConfiguredHost>> {
    let hosts: HostsToml = toml::from_str(text)?;
    let mut endpoints = Vec::new();
    for (url, options) in in_order_of_text(text, &hosts.host) {
        let options =
            HostOptions::deserialize(options.clone()).with_context(|| format!("host {url:?}"))?;
        let pushes = options.capabilities.is_some() && options.can("push");
        endpoints.push(configured_host(&url, host, &options, directory, pushes)?);
    }
    let server = hosts.server.unwrap_or_else(|| default_server(host));
    let options = hosts.server_options;
    let pushes = options.can("push");
    endpoints.push(configured_host(&server, host, &options, directory, pushes)?);
    Ok(endpoints)
}

/// The endpoints that serve pulls according to the text of a hosts.toml.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse(text: &str, directory: &Path, host: &str) -> anyhow::Result<Vec<Endpoint>> {
    let hosts = parse_all(text, directory, host)?.into_iter();
    Ok(hosts.filter(|host| host.pulls).map(|host| host.endpoint).collect())
}

/// The tables in the order of the text. The toml crate sorts them by name unless its feature
/// `preserve_order` is on, which would cost every other user of the crate.
fn in_order_of_text(text: &str, hosts: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut tables: Vec<(String, toml::Value)> =
        hosts.iter().map(|(url, table)| (url.clone(), table.clone())).collect();
    tables.sort_by_key(|(url, _)| text.find(url.as_str()).unwrap_or(usize::MAX));
    tables
}

fn configured_host(
    url: &str,
    host: &str,
    options: &HostOptions,
    directory: &Path,
    pushes: bool,
) -> anyhow::Result<ConfiguredHost> {
    let mut endpoint = Endpoint::new(url, host, options.override_path)?;
    endpoint.resolves = options.can("resolve");
    endpoint.client =
        options.client.certificate(directory).with_context(|| format!("host {url:?}"))?;
    endpoint.skip_verify = options.skip_verify;
    endpoint.ca = options.ca.list().into_iter().map(|path| directory.join(path)).collect();
    for (name, values) in &options.header {
        endpoint.headers.extend(values.list().into_iter().map(|value| (name.clone(), value)));
    }
    Ok(ConfiguredHost { endpoint, pulls: options.can("pull"), pushes })
}

/// The URL of a registry without configuration. Registries on a loopback address use http, as in
/// Docker and containerd.
fn default_server(host: &str) -> String {
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.split(']').next())
        .unwrap_or_else(|| host.split(':').next().unwrap_or(host));
    let is_loopback =
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match host {
        // Names of images contain this host, but it serves a web site and no registry.
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        _ if is_loopback => format!("http://{host}"),
        _ => format!("https://{host}"),
    }
}

impl Endpoint {
    /// The endpoint at `url` for images of `host`. Unless `override_path` is set, the API's path is
    /// appended to the URL.
    ///
    /// # Errors
    /// `url` is not an http or https URL.
    pub(super) fn new(url: &str, host: &str, override_path: bool) -> anyhow::Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let parsed =
            reqwest::Url::parse(&url).map_err(|error| anyhow!("{url:?} is not a URL: {error}"))?;
        if !["http", "https"].contains(&parsed.scheme()) || parsed.host_str().is_none() {
            bail!("{url:?} is not an http or https URL");
        }
        let mut base = url.trim_end_matches('/').to_owned();
        if !override_path && !base.ends_with("/v2") {
            base += "/v2";
        }
        let is_mirror = !base.starts_with(&default_server(host));
        Ok(Self {
            base,
            skip_verify: false,
            ca: Vec::new(),
            client: None,
            headers: Vec::new(),
            resolves: true,
            namespace: is_mirror.then(|| host.to_owned()),
        })
    }

    /// Adds the certificates in a directory of Docker's (docs.docker.com,
    /// engine/security/certificates).
    fn trust_as_docker(&mut self, directory: &Path) -> anyhow::Result<()> {
        let files = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
        let mut files = files.collect::<io::Result<Vec<_>>>()?;
        // Directory order is arbitrary; sorted, an error names the same file every time.
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
                    self.client = Some(ClientCertificate { certificate: file, key: Some(key) });
                }
                _ => {}
            }
        }
        let has_certificates = !self.ca.is_empty() || self.client.is_some();
        // On loopback http is only the default. Certificates mean that the registry uses TLS.
        if has_certificates && let Some(address) = self.base.strip_prefix("http://") {
            self.base = format!("https://{address}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, host: &str) -> Vec<String> {
        parse(text, Path::new("/c"), host)
            .unwrap()
            .into_iter()
            .map(|endpoint| endpoint.base)
            .collect()
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
        assert_eq!(
            (endpoints[0].resolves, endpoints[0].ca[0].to_str()),
            (false, Some("/c/ca.crt"))
        );
        let pair = ClientCertificate {
            certificate: "/c/node.cert".into(),
            key: Some("/c/node.key".into()),
        };
        assert_eq!((&endpoints[0].client, &endpoints[1].client), (&Some(pair), &None));
        assert_eq!((endpoints[0].headers.len(), endpoints[1].skip_verify), (2, true));
        assert_eq!(
            (endpoints[0].namespace.as_deref(), endpoints[2].namespace.as_deref()),
            (Some("upstream.io"), None)
        );
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
            let found = pair.map(|pair| {
                (
                    pair.certificate.to_str().unwrap(),
                    pair.key.as_ref().map(|key| key.to_str().unwrap()),
                )
            });
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
        let pair = ClientCertificate {
            certificate: directory.join("node.cert"),
            key: Some(directory.join("node.key")),
        };
        assert_eq!(
            (found.base.as_str(), found.ca),
            ("https://r.io:5000/v2", vec![directory.join("a.crt"), directory.join("b.crt")])
        );
        assert_eq!(found.client, Some(pair));
        fs::write(directory.join("second.cert"), "").unwrap();
        assert!(
            format!("{:#}", endpoints(root.path(), "r.io:5000").unwrap_err())
                .contains("is another")
        );
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
