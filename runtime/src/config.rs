//! The configuration: TOML to types, once. Unknown keys are refused with file and line.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Printed by `berthd config default`; parsing it gives `Config::default()`.
pub(crate) const DEFAULT: &str = r#"# berthd configuration. Every key may be left out; these are the defaults.

# What persists: images, containers, records. Mode 0700.
root = "/var/lib/berth"
# What a reboot ends: sockets, pinned namespaces, address reservations.
state = "/run/berth"
# The socket that the kubelet and crictl dial.
listen = "/run/berth/berth.sock"

# Archives of images in it are imported at start, before anything is served; it may be absent.
images_dir = "/etc/berth/images"
# Images that the kubelet is told never to collect, besides those of images_dir: names with *, as in "registry.example.com/base/*".
pinned_images = []

[cni]
# The first *.conflist, *.conf or *.json by name is the pod network; without one, a built-in bridge, with the pods'
# network that the kubelet tells, or 10.88.0.0/16.
conf_dir = "/etc/cni/net.d"
# Where plugins are looked up, in this order.
bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
# Where CNI's own tools look for what plugins answered; berthd has a link there for each pod.
cache_dir = "/var/lib/cni/results"
# A plugin that takes longer is killed.
timeout_seconds = 60
# Without files in conf_dir, and once the kubelet has told the pods' network: a conf list with {{.PodCIDR}} and its like, as containerd's.
# conf_template = "/etc/cni/template.conflist"

[registry]
# <host>/hosts.toml below it says how to reach a registry, _default/hosts.toml all others.
config_path = "/etc/berth/certs.d"
# Docker's config.json, credential helpers included, for pulls that bring no credentials; it may be absent.
auth_file = "/var/lib/kubelet/config.json"
# The kubelet's credential plugins, by what its --image-credential-provider-config and -bin-dir say; asked where auth_file has nothing.
# credential_providers = { config = "/etc/kubernetes/credential-providers.yaml", bin_dir = "/opt/credential-providers" }
# A pull that gets less than 1 KiB a second for so long tries anew, from the next endpoint if there is one; the third time it fails.
stall_seconds = 30
# Which signatures pulled images must bear: a file as containers-policy.json(5) describes it. Without it, none.
# signature_policy = "/etc/containers/policy.json"

[streaming]
# Where exec, attach and port-forward are served, for the kubelet and crictl of this machine; port 0 is any.
address = "127.0.0.1:0"
# With TLS; both files are read again when they change.
# tls = { cert = "/etc/berth/streaming.crt", key = "/etc/berth/streaming.key" }

[metrics]
# Where Prometheus scrapes /metrics: off without it. Everyone who reaches the address can read them.
# listen = "127.0.0.1:9325"

[cdi]
# Files that say what the devices need that containers ask for by name, as vendor/class=name; later directories win.
spec_dirs = ["/etc/cdi", "/var/run/cdi"]

[cgroup]
# "cgroupfs", or "systemd" on a node with cgroup v2 and systemd; the kubelet asks for it, and older ones must be told the same.
driver = "cgroupfs"

# Names for RuntimeClass objects, besides "berth" and "runc", which are berth itself. Another OCI runtime makes the containers of
# pods that name it: runc or crun, with the systemd driver only crun.
# [handlers.crun]
# oci_runtime = "/usr/bin/crun"
"#;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub listen: PathBuf,
    pub images_dir: PathBuf,
    pub pinned_images: Vec<String>,
    pub cni: Cni,
    pub registry: Registry,
    pub streaming: Streaming,
    pub metrics: Metrics,
    pub cdi: Cdi,
    pub cgroup: Cgroup,
    pub handlers: BTreeMap<String, Handler>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cni {
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    pub cache_dir: PathBuf,
    pub timeout_seconds: NonZeroU64,
    #[serde(deserialize_with = "absolute")]
    pub conf_template: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    pub config_path: PathBuf,
    pub auth_file: PathBuf,
    pub credential_providers: Option<CredentialProviders>,
    pub stall_seconds: NonZeroU64,
    #[serde(deserialize_with = "absolute")]
    pub signature_policy: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Streaming {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Absent: nobody is told.
    pub listen: Option<SocketAddr>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), tls: None }
    }
}

/// Plugins of the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CredentialProviders {
    pub config: PathBuf,
    pub bin_dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cdi {
    pub spec_dirs: Vec<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cgroup {
    pub driver: Driver,
}

/// What a RuntimeClass may name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Handler {
    /// Absent: berth itself.
    #[serde(deserialize_with = "absolute")]
    pub oci_runtime: Option<PathBuf>,
}

fn absolute<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    match path.is_absolute() {
        true => Ok(Some(path)),
        false => Err(serde::de::Error::custom(format!("{} is not absolute", path.display()))),
    }
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    #[default]
    Cgroupfs,
    /// Transient scopes, over D-Bus.
    Systemd,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            listen: "/run/berth/berth.sock".into(),
            images_dir: "/etc/berth/images".into(),
            pinned_images: Vec::new(),
            cni: Cni::default(),
            registry: Registry::default(),
            streaming: Streaming::default(),
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
        }
    }
}

impl Default for Cdi {
    fn default() -> Self {
        Self { spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

impl Config {
    /// Reads `path`; a missing file is the default when `required` is false.
    ///
    /// # Errors
    /// One text for a person, with file, line and column where the file is at fault.
    pub(crate) fn load(path: &Path, required: bool) -> Result<Self, String> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|error| format!("{}:{error}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(Self::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            format!("{line}:{column}: {}", error.message().trim_end())
        })
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = &text[..byte.min(text.len())];
    let line = before.matches('\n').count() + 1;
    (line, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_default_is_the_default() {
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
            let error = Config::parse(text).unwrap_err();
            assert!(error.starts_with(position) && error.contains(what), "{text:?} gave {error:?}");
        }
    }
}
