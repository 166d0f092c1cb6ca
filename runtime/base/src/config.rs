//! The configuration: TOML to types, read once at the start. Unknown keys are refused, and every
//! mistake is named with its file, line and column.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    num::NonZeroU64,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

/// Printed by `berthd config default`; parsing it gives `Config::default()`.
pub const DEFAULT: &str = r#"# The configuration of berthd. Every key may be left out.
# These are the defaults.

# Where berthd keeps what outlives a reboot: images, containers, records. Mode 0700.
root = "/var/lib/berth"
# Where berthd keeps what ends with a reboot: sockets, pinned namespaces, address reservations.
state = "/run/berth"
# The socket that the kubelet and crictl connect to.
listen = "/run/berth/berth.sock"
# A group whose members may connect to it, as with crictl. They can become root on this machine.
# group = "berth"

# Archives of images in this directory are imported at every start, before anything is served.
# The directory may be absent.
images_dir = "/etc/berth/images"
# Images that the kubelet must not remove when it makes room, besides those of images_dir.
# The names may have * in them, as in "registry.example.com/base/*".
pinned_images = []

[cni]
# The first valid *.conflist, *.conf or *.json by name is the network of the pods. Without any,
# pods get a built-in bridge with the network that the kubelet assigns to the node, or
# 10.88.0.0/16.
conf_dir = "/etc/cni/net.d"
# The directories where plugins are looked for, in this order.
bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
# The directory where CNI's own tools look for the results of plugins. berthd keeps a link to
# each pod's result there.
cache_dir = "/var/lib/cni/results"
# A plugin that takes longer is killed.
timeout_seconds = 60
# A template for a conf list, used when conf_dir has no files. {{.PodCIDR}} and the like, as in
# containerd's conf_template, stand for the network that the kubelet assigns to the node.
# conf_template = "/etc/cni/template.conflist"

[registry]
# How to reach a registry is in <host>/hosts.toml below this directory, and for all other
# registries in _default/hosts.toml. The format is containerd's.
config_path = "/etc/berth/certs.d"
# Docker's config.json, with credentials or credential helpers, for pulls that come without
# credentials. The file may be absent.
auth_file = "/var/lib/kubelet/config.json"
# The kubelet's credential plugins, asked when auth_file has nothing for a registry. The two
# paths are those of the kubelet's options --image-credential-provider-config and -bin-dir.
# credential_providers = { config = "/etc/kubernetes/providers.yaml", bin_dir = "/opt/providers" }
# A pull that receives less than 1 KiB a second for this long is tried again, at the next mirror
# if there is one. The third time it fails.
stall_seconds = 30
# Which images may be pulled, and whose signatures they must have: a file as described in
# containers-policy.json(5). Without it, all images may be pulled.
# signature_policy = "/etc/containers/policy.json"
# How layers are compressed when docker pushes an image: "gzip", which every registry and runtime
# takes, or "zstd", which is smaller and faster.
push_compression = "gzip"

[streaming]
# Where exec, attach and port-forward are served. Their clients are the kubelet and crictl on this
# machine. Port 0 is any free port.
address = "127.0.0.1:0"
# Serves them with TLS. Both files are read again when they change.
# tls = { cert = "/etc/berth/streaming.crt", key = "/etc/berth/streaming.key" }

[engine]
# Where the Docker Engine API is served, for the docker CLI, compose and SDKs. Without it, it is not
# served. Who may connect to it is root on this machine.
# listen = "/run/docker.sock"
# A group whose members may connect, too.
# group = "docker"

[metrics]
# Where Prometheus can scrape /metrics. Without it, metrics are not served. Everyone who reaches
# the address can read them.
# listen = "127.0.0.1:9325"

[cdi]
# Directories with the files of the Container Device Interface, which say what a container needs
# to use a device (vendor/class=name). If two directories describe a device, the later one wins.
spec_dirs = ["/etc/cdi", "/var/run/cdi"]

[cgroup]
# "cgroupfs", or "systemd" on a node with cgroup v2 and systemd. Kubelets from 1.31 on ask berthd
# for it; older ones must be configured to use the same.
driver = "cgroupfs"

# Handlers for RuntimeClass objects, besides "berth" and "runc", which are berth itself. Another
# OCI runtime makes the containers of the pods that name the handler: runc or crun, and with the
# systemd driver only crun.
# [handlers.crun]
# oci_runtime = "/usr/bin/crun"
"#;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub listen: PathBuf,
    /// Absent: only root may connect.
    pub group: Option<String>,
    pub images_dir: PathBuf,
    pub pinned_images: Vec<String>,
    pub cni: Cni,
    pub registry: Registry,
    pub streaming: Streaming,
    pub engine: Engine,
    pub metrics: Metrics,
    pub cdi: Cdi,
    pub cgroup: Cgroup,
    pub handlers: BTreeMap<String, Handler>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    pub cache_dir: PathBuf,
    pub timeout_seconds: NonZeroU64,
    #[serde(deserialize_with = "absolute")]
    pub conf_template: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    pub config_path: PathBuf,
    pub auth_file: PathBuf,
    pub credential_providers: Option<CredentialProviders>,
    pub stall_seconds: NonZeroU64,
    #[serde(deserialize_with = "absolute")]
    pub signature_policy: Option<PathBuf>,
    pub push_compression: PushCompression,
}

/// How layers are compressed that are pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushCompression {
    #[default]
    Gzip,
    Zstd,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Absent: metrics are not served.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Absent: the Docker Engine API is not served.
    #[serde(deserialize_with = "absolute")]
    pub listen: Option<PathBuf>,
    pub group: Option<String>,
}

/// The paths of two PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), tls: None }
    }
}

/// The kubelet's credential plugins: their configuration file, and where they are installed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialProviders {
    pub config: PathBuf,
    pub bin_dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cdi {
    pub spec_dirs: Vec<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    pub driver: Driver,
}

/// What is behind a name that a RuntimeClass may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// Absent: berth itself.
    #[serde(deserialize_with = "absolute")]
    pub oci_runtime: Option<PathBuf>,
}

fn absolute<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    match path.is_absolute() {
        true => Ok(Some(path)),
        false => Err(serde::de::Error::custom(format!("{} is not absolute", path.display()))),
    }
}

/// Who makes the cgroups of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// berthd itself.
    #[default]
    Cgroupfs,
    /// systemd, as transient scopes, over D-Bus.
    Systemd,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            listen: "/run/berth/berth.sock".into(),
            group: None,
            images_dir: "/etc/berth/images".into(),
            pinned_images: Vec::new(),
            cni: Cni::default(),
            registry: Registry::default(),
            streaming: Streaming::default(),
            engine: Engine::default(),
            metrics: Metrics::default(),
            cdi: Cdi::default(),
            cgroup: Cgroup::default(),
            handlers: BTreeMap::new(),
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni/results".into(),
            timeout_seconds: const { NonZeroU64::new(60).expect("not zero") },
            conf_template: None,
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            config_path: "/etc/berth/certs.d".into(),
            auth_file: "/var/lib/kubelet/config.json".into(),
            credential_providers: None,
            stall_seconds: const { NonZeroU64::new(30).expect("not zero") },
            signature_policy: None,
            push_compression: PushCompression::default(),
        }
    }
}

impl Default for Cdi {
    fn default() -> Self {
        Self { spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

impl Config {
    /// Reads `path`. If the file is missing and not `required`, the result is the default.
    ///
    /// # Errors
    /// Text for a person, with a line for each mistake: file, line, column and what is wrong.
    pub fn load(path: &Path, required: bool) -> Result<Self, String> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|mistakes| {
                let line = |mistake: &String| format!("{}:{mistake}", path.display());
                mistakes.iter().map(line).collect::<Vec<_>>().join("\n")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {
                Ok(Self::default())
            }
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Parses all of it, also after a mistake. serde stops at the first one, so what is wrong is
    /// removed and the rest is read again.
    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let (mut document, mut errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // The parser may stumble several times over one mistake in a line.
            errors.dedup_by_key(|error| position(text, start(error)).0);
            return Err(lines(text, errors));
        }
        // A copy of the document is read each time, because deserializing takes it apart.
        let mut mistakes = Vec::new();
        let mut removed: Vec<Vec<String>> = Vec::new();
        loop {
            let error = match Self::deserialize(toml::Deserializer::from(document.clone())) {
                Ok(config) if mistakes.is_empty() => return Ok(config),
                Ok(_) => return Err(lines(text, mistakes)),
                Err(error) => error,
            };
            let path = error.span().and_then(|span| remove(document.get_mut(), &span));
            // A table that lacks the key that was removed from it is not a mistake of the file.
            let follows =
                |path: &Vec<String>| removed.iter().any(|earlier| earlier.starts_with(path));
            if !path.as_ref().is_some_and(follows) {
                mistakes.push(error);
            }
            match path {
                Some(path) => removed.push(path),
                None => return Err(lines(text, mistakes)),
            }
        }
    }
}

/// Removes the key whose name or value is at `span`, and returns its path.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let is_at = |found: Range<usize>| found.start <= span.start && span.end <= found.end;
    // The innermost key that has the span, so that as little as possible is removed.
    for (key, value) in table.iter_mut() {
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(mut path) = remove(inner, span)
        {
            path.insert(0, key.get_ref().to_string());
            return Some(path);
        }
    }
    let (key, _) = table.iter().find(|(key, value)| is_at(key.span()) || is_at(value.span()))?;
    let key = key.clone();
    table.remove(&key);
    Some(vec![key.into_inner().into_owned()])
}

/// A line for each mistake, in the order of the file.
fn lines(text: &str, mut mistakes: Vec<toml::de::Error>) -> Vec<String> {
    mistakes.sort_by_key(start);
    let line = |error: &toml::de::Error| {
        let (line, column) = position(text, start(error));
        format!("{line}:{column}: {}", error.message().trim_end())
    };
    mistakes.iter().map(line).collect()
}

fn start(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// Line and column of a byte, both from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    // An error at the end of the file may be behind its last byte.
    let before = &text[..byte.min(text.len())];
    let line = before.matches('\n').count() + 1;
    (line, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_default_is_the_default() {
        assert!(DEFAULT.lines().all(|line| line.len() <= 100));
        assert_eq!(Config::parse(DEFAULT).unwrap(), Config::default());
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, position, what) in [
            ("root = \"/x\"\nroots = 1\n", "2:1", "unknown field `roots`"),
            ("[cni]\nconf_dirs = \"/x\"", "2:1", "unknown field `conf_dirs`"),
            ("\n\nroot = 7", "3:8", "invalid type: integer"),
            ("[cgroup]\ndriver = \"upstart\"", "2:10", "unknown variant `upstart`"),
            ("[handlers.x]\noci_runtime = \"crun\"", "2:15", "not absolute"),
            ("[cni", "1:5", ""),
        ] {
            let mistakes = Config::parse(text).unwrap_err();
            assert!(
                mistakes[0].starts_with(position) && mistakes[0].contains(what),
                "{text:?} gave {mistakes:?}"
            );
            assert_eq!(mistakes.len(), 1, "{text:?} gave {mistakes:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_in_their_order() {
        for (text, expected) in [
            (
                "roots = 1\nstate = 2\n[zoo]\na = 1\n\
                 [cni]\nbin_dirs = [\"/x\", 3]\nconf_dirs = \"/x\"\n",
                &[
                    "1:1: unknown field `roots`",
                    "2:9: invalid type",
                    "3:2: unknown field `zoo`",
                    "6:19: invalid type",
                    "7:1: unknown field `conf_dirs`",
                ][..],
            ),
            // A key that is missing only because its value is wrong is not reported as missing.
            (
                "[streaming]\ntls = { cert = 1, key = \"/k\" }\nport = 1\n",
                &["2:16: invalid type", "3:1: unknown field `port`"],
            ),
            ("[streaming.tls]\ncert = \"/c\"\nkye = \"/k\"\n", &["3:1: unknown field `kye`"]),
            (
                "x = 1\n[streaming]\ntls = { cert = \"/c\" }\n",
                &["1:1: unknown field `x`", "3:7: missing field `key`"],
            ),
            (
                "[handlers.a]\noci = 1\n[handlers.b]\noci_runtime = \"crun\"",
                &["2:1: unknown field `oci`", "4:15: crun is not absolute"],
            ),
            ("a = = 1\nb = ]\n", &["1:5: ", "2:5: "]),
        ] {
            let mistakes = Config::parse(text).unwrap_err();
            let as_expected = mistakes.len() == expected.len()
                && mistakes.iter().zip(expected).all(|(mistake, start)| mistake.starts_with(start));
            assert!(as_expected, "{text:?} gave {mistakes:#?}");
        }
    }
}
