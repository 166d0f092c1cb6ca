//! What is kept of an attachment, from before the first plugin runs until the last DEL: one file, in the form in which libcni keeps its
//! results, so that its tools can read it too.

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_cni::{ConfList, Success};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{INTERFACE, capabilities::Pod, conf::Network};

/// As libcni's `cachedInfo`. Without a result, ADD has begun and a DEL is owed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attachment {
    kind: String,
    pub container_id: String,
    /// The conf list as it was, in base64.
    config: String,
    pub if_name: String,
    network_name: String,
    pub netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    pub capability_args: BTreeMap<String, Value>,
    #[serde(default)]
    pub result: Option<Success>,
}

impl Attachment {
    pub(super) fn new(network: &Network, pod: &Pod, capability_args: BTreeMap<String, Value>) -> Self {
        let (netns, cni_args) = (pod.netns.display().to_string(), pod.arguments());
        Self { netns, cni_args, capability_args, ..Self::unknown(network, &pod.id) }
    }

    /// Of one whose file a crash has emptied: nothing is known but the id.
    pub(super) fn unknown(network: &Network, id: &str) -> Self {
        Self {
            kind: "cniCacheV1".to_owned(),
            container_id: id.to_owned(),
            config: STANDARD.encode(&network.text),
            if_name: INTERFACE.to_owned(),
            network_name: network.list.name.clone(),
            netns: String::new(),
            cni_args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capability_args: BTreeMap::new(),
            result: None,
        }
    }

    /// The network as it was at ADD.
    pub(super) fn conf_list(&self) -> Result<ConfList, String> {
        let text = STANDARD.decode(&self.config).map_err(|error| error.to_string())?;
        ConfList::parse(&String::from_utf8_lossy(&text))
    }

    /// Where libcni looks.
    pub(super) fn cache_name(&self) -> String {
        format!("{}-{}-{}", self.network_name, self.container_id, self.if_name)
    }

    /// CNI_CONTAINERID and its like, with more for CNI_ARGS.
    pub(super) fn environment(&self, more: Option<&str>) -> Vec<(&'static str, String)> {
        let arguments = self.cni_args.iter().map(|(key, value)| format!("{key}={value}"));
        let arguments: Vec<String> = arguments.chain(more.map(str::to_owned)).collect();
        vec![
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.if_name.clone()),
            ("CNI_ARGS", arguments.join(";")),
        ]
    }

    /// Addresses of the pod's interface, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.result else { return Vec::new() };
        // Plugins before 0.3.0 name no interfaces.
        let ours = |index: Option<usize>| {
            index.and_then(|index| result.interfaces.get(index)).is_none_or(|interface| interface.name == INTERFACE)
        };
        let mut addresses: Vec<IpAddr> =
            result.ips.iter().filter(|ip| ours(ip.interface)).map(|ip| ip.address.addr()).collect();
        addresses.sort_by_key(|address| !address.is_ipv4());
        addresses
    }
}
