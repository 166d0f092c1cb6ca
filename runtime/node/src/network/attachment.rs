//! What is kept of an attachment, from before the first plugin runs until the last DEL has
//! succeeded: one file for each interface of a pod, in the form in which libcni caches its results,
//! so that CNI's tools can read it too.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_base::{blocking::blocking, layout::Layout};
use berth_cni::{ConfList, Route, Success};
use berth_shim::record::{self, Found};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    capabilities::Pod,
    conf::Network,
    key::{key, parts},
};

/// `cachedInfo` of libcni. Without a result, an ADD has begun and may have left anything behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    kind: String,
    pub container_id: String,
    /// The conf list as it was at ADD, in base64. DEL uses this one, whatever the directory has in
    /// it by then.
    config: String,
    pub if_name: String,
    network_name: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    pub capability_args: BTreeMap<String, Value>,
    #[serde(default)]
    pub result: Option<Success>,
    /// Whether it is taken from a pod that goes on, so that its interface does not go with the
    /// network namespace.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) leaves: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Attachment {
    /// Of a pod that is to be attached to `network`.
    pub(super) fn new(
        network: &Network,
        pod: &Pod,
        capability_args: BTreeMap<String, Value>,
    ) -> Self {
        Self {
            netns: pod.netns.display().to_string(),
            cni_args: pod.arguments(),
            capability_args,
            ..Self::unknown(network, &pod.key())
        }
    }

    /// The same, once the pod's default route leads to this network, or no longer does.
    ///
    /// # Errors
    /// An annotation of the pod's is wrong.
    pub(super) fn routed(
        &self,
        network: &Network,
        pod: &Pod,
        is_default: bool,
    ) -> anyhow::Result<Self> {
        let mut result = self.result.clone();
        if let Some(result) = &mut result {
            // CHECK compares these.
            result.routes.retain(|route| route.dst.prefix_len() != 0);
            let gateways = result.ips.iter().filter_map(|ip| ip.gateway).filter(|_| is_default);
            let routes: Vec<Route> = gateways.map(Route::default_through).collect();
            result.routes.extend(routes);
        }
        let capability_args = pod.capabilities(&[])?;
        Ok(Self { result, leaves: self.leaves, ..Self::new(network, pod, capability_args) })
    }

    /// One whose file says nothing, so that only its name is known.
    pub(super) fn unknown(network: &Network, key: &str) -> Self {
        let (id, interface) = parts(key);
        Self {
            kind: "cniCacheV1".to_owned(),
            container_id: id.to_owned(),
            config: STANDARD.encode(&network.text),
            if_name: interface.to_owned(),
            network_name: network.list.name.clone(),
            netns: String::new(),
            cni_args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capability_args: BTreeMap::new(),
            result: None,
            leaves: false,
        }
    }

    pub(super) fn key(&self) -> String {
        key(&self.container_id, &self.if_name)
    }

    /// The network as it was at ADD.
    pub(super) fn conf_list(&self) -> Result<ConfList, String> {
        let text = STANDARD.decode(&self.config).map_err(|error| error.to_string())?;
        ConfList::parse(&String::from_utf8_lossy(&text))
    }

    /// The name of the file in which libcni looks for it.
    pub(super) fn cache_name(&self) -> String {
        format!("{}-{}-{}", self.network_name, self.container_id, self.if_name)
    }

    /// The environment of a plugin (SPEC.md, section 2, "Parameters"), with one more argument in
    /// CNI_ARGS if there is one.
    pub(super) fn environment(&self, more: Option<&str>) -> Vec<(&'static str, String)> {
        // SPEC.md: `;` between arguments, `=` between name and value.
        let mut arguments: Vec<String> =
            self.cni_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        arguments.extend(more.map(str::to_owned));
        vec![
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.if_name.clone()),
            ("CNI_ARGS", arguments.join(";")),
        ]
    }

    /// The addresses of the pod's interface, IPv4 first, which the kubelet shows as the pod's IP.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.result else { return Vec::new() };
        let mut addresses = Vec::new();
        for ip in &result.ips {
            let interface = ip.interface.and_then(|index| result.interfaces.get(index));
            // Plugins from before 0.3.0 name no interfaces; others also tell the addresses of the
            // host's end.
            if interface.is_none_or(|interface| interface.name == self.if_name) {
                addresses.push(ip.address.addr());
            }
        }
        // Stable, so that several addresses of a family stay in the order of the plugin.
        addresses.sort_by_key(|address| !address.is_ipv4());
        addresses
    }
}

/// The interface of a container on a bridge, and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// That of `Bridge::network`.
    pub network: String,
    /// The interface in the container.
    pub interface: String,
    pub mac: String,
    /// With their gateways.
    pub ipv4: Option<(IpNet, Option<IpAddr>)>,
    pub ipv6: Option<(IpNet, Option<IpAddr>)>,
}

impl Attachment {
    /// What the plugins made of it. `None` before ADD has ended.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        let result = self.result.as_ref()?;
        let address = |is_v4: bool| {
            let ip = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4)?;
            Some((ip.address, ip.gateway))
        };
        let interface =
            result.interfaces.iter().find(|interface| interface.name == self.if_name)?;
        Some(Endpoint {
            network: self.network_name.clone(),
            interface: self.if_name.clone(),
            mac: interface.mac.clone(),
            ipv4: address(true),
            ipv6: address(false),
        })
    }
}

/// The files of `Layout::attachments`.
#[derive(Debug)]
pub(super) struct Attachments {
    directory: PathBuf,
}

impl Attachments {
    /// Makes the directory. To be called before the first ADD: it removes records that a crash cut
    /// short, which look the same as those that are being written.
    pub(super) fn open(layout: &Layout) -> anyhow::Result<Self> {
        let directory = layout.attachments();
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let attachments = Self { directory };
        // `record::write` writes to a file with an extension and renames it.
        for path in attachments.files()? {
            if path.extension().is_some()
                && let Err(error) = remove_file(&path)
            {
                // As on a disk that is read-only, where nothing else is written either.
                tracing::warn!("a network record that was cut short stays: {error:#}");
            }
        }
        Ok(attachments)
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.directory.join(key)
    }

    pub(super) fn read(&self, key: &str) -> anyhow::Result<Found<Attachment>> {
        let path = self.path(key);
        blocking(|| record::read(&path)).with_context(|| format!("read {}", path.display()))
    }

    pub(super) fn write(&self, attachment: &Attachment) -> anyhow::Result<()> {
        let path = self.path(&attachment.key());
        blocking(|| record::write(&path, attachment))
            .with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn remove(&self, key: &str) -> anyhow::Result<()> {
        blocking(|| remove_file(&self.path(key)))
    }

    /// The names of all. Records that are being written have an extension.
    pub(super) fn keys(&self) -> anyhow::Result<Vec<String>> {
        let files = self.files()?.into_iter().filter(|path| path.extension().is_none());
        Ok(files
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .collect())
    }

    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries = blocking(|| fs::read_dir(&self.directory))
            .with_context(|| format!("list {}", self.directory.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    }
}

/// Removes whatever is in the place of a file: a directory there must not keep a DEL pending for
/// ever. Success when nothing is there.
pub(super) fn remove_file(path: &Path) -> anyhow::Result<()> {
    record::remove(path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_is_kept_as_libcni_keeps_it() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#;
        let network = Network { list: ConfList::parse(text).unwrap(), text: text.to_owned() };
        let pod = Pod {
            id: "i".into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            netns: "/run/netns/x".into(),
            ..Pod::default()
        };
        let attachment = Attachment::new(&network, &pod, BTreeMap::new());
        assert_eq!(attachment.cache_name(), "n-i-eth0");
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;\
            K8S_POD_INFRA_CONTAINER_ID=i;K8S_POD_UID=u";
        assert!(attachment.environment(None).contains(&("CNI_ARGS", arguments.to_owned())));
        let text = serde_json::to_string(&attachment).unwrap();
        assert!(text.contains(r#""cniArgs":[["IgnoreUnknown","1"],"#), "{text}");
        let read: Attachment = serde_json::from_str(&text).unwrap();
        assert!(read.conf_list().is_ok());
    }

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<Attachment>("attachment.json");
    }
}
