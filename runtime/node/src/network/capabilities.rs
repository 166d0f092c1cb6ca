//! What plugins are told about a pod: CNI_ARGS, and the arguments of capabilities, of which a
//! plugin gets those that its configuration declares (CONVENTIONS.md of the CNI specification).

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{anyhow, bail};
use berth_cni::{Bandwidth, PortMapping};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    bridge::Bridge,
    key::{self, INTERFACE},
};

/// A pod that is to be attached to the network.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    /// An object with the lists `servers`, `searches` and `options`.
    pub dns: Option<Value>,
    pub cgroup_parent: String,
    /// The network that it gets in the place of the pods'.
    pub bridge: Option<Bridge>,
}

impl Pod {
    /// The name of its attachment.
    pub(super) fn key(&self) -> String {
        let interface = self.bridge.as_ref().map_or(INTERFACE, |bridge| &bridge.inside);
        key::key(&self.id, interface)
    }

    /// Keys and values of CNI_ARGS, with the names that containerd and CRI-O use.
    pub(super) fn arguments(&self) -> Vec<(String, String)> {
        [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.namespace),
            ("K8S_POD_NAME", &self.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.id),
            ("K8S_POD_UID", &self.uid),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    /// The arguments of all capabilities, whether a plugin declares them or not. `ranges` are the
    /// networks that the kubelet assigned to the node's pods.
    ///
    /// # Errors
    /// An annotation about bandwidth is not a rate.
    pub(super) fn capabilities(&self, ranges: &[IpNet]) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        // Also if there are none: an empty list lets a DEL skip the search for the pod's ports
        // among those of all pods.
        all.insert("portMappings".to_owned(), json!(self.ports));
        if let Some(bandwidth) = bandwidth(&self.annotations)? {
            all.insert("bandwidth".to_owned(), json!(bandwidth));
        }
        if let Some(dns) = &self.dns {
            all.insert("dns".to_owned(), dns.clone());
        }
        if let Some(bridge) = &self.bridge {
            all.insert("ips".to_owned(), json!(bridge.addresses));
            if let Some(mac) = &bridge.mac {
                all.insert("mac".to_owned(), json!(mac));
            }
        } else if !ranges.is_empty() {
            all.insert("ipRanges".to_owned(), range_sets(ranges));
        }
        if !self.cgroup_parent.is_empty() {
            all.insert("cgroupPath".to_owned(), json!(self.cgroup_parent));
        }
        all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(self.annotations));
        Ok(all)
    }
}

/// The range sets of host-local that give a pod one address of each network.
pub(super) fn range_sets(ranges: &[IpNet]) -> Value {
    ranges.iter().map(|range| json!([{ "subnet": range }])).collect()
}

/// The limits of the annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth`, in bits
/// per second.
///
/// The burst is what passes in one second. containerd and CRI-O allow as much as 4 Gbit, with which
/// most connections are over before they notice any limit.
fn bandwidth(annotations: &BTreeMap<String, String>) -> anyhow::Result<Option<Bandwidth>> {
    let ingress_rate = rate(annotations, "kubernetes.io/ingress-bandwidth")?;
    let egress_rate = rate(annotations, "kubernetes.io/egress-bandwidth")?;
    if ingress_rate == 0 && egress_rate == 0 {
        return Ok(None);
    }
    // The kernel and the plugins hold a burst in 32 bits.
    let max_burst = u64::from(u32::MAX);
    Ok(Some(Bandwidth {
        ingress_rate,
        ingress_burst: ingress_rate.min(max_burst),
        egress_rate,
        egress_burst: egress_rate.min(max_burst),
    }))
}

/// 0 without such an annotation.
fn rate(annotations: &BTreeMap<String, String>, name: &str) -> anyhow::Result<u64> {
    let Some(text) = annotations.get(name) else { return Ok(0) };
    let rate =
        quantity(text).ok_or_else(|| anyhow!("annotation {name}: {text:?} is not a quantity"))?;
    // The bounds of the kubelet (`k8s.io/kubernetes/pkg/util/bandwidth`).
    if !(1e3..=1e15).contains(&rate) {
        bail!("annotation {name}: {text} is not between 1k and 1P");
    }
    Ok(rate as u64)
}

/// A quantity of Kubernetes (`k8s.io/apimachinery/pkg/api/resource`): `10M`, `1.5Gi`, `1e6`.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1048576.0),
        ("Gi", 1073741824.0),
        ("Ti", 1099511627776.0),
        ("Pi", 1125899906842624.0),
        ("Ei", 1152921504606846976.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    // Rust's parser of floats also takes "inf", "NaN" and negative numbers.
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '+') {
        return None;
    }
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, value) in [
            ("10M", Some(1e7)),
            ("1.5Gi", Some(1610612736.0)),
            ("1e6", Some(1e6)),
            ("500k", Some(5e5)),
            ("7", Some(7.0)),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
        for text in ["", "M", "-1", "inf", "NaN", "10MB", "1 M"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn a_burst_is_a_second_and_rates_have_bounds() {
        let with = |value: &str| {
            bandwidth(&BTreeMap::from([(
                "kubernetes.io/egress-bandwidth".to_owned(),
                value.to_owned(),
            )]))
        };
        let limits = with("10M").unwrap().unwrap();
        assert_eq!(
            (limits.egress_rate, limits.egress_burst, limits.ingress_rate),
            (10_000_000, 10_000_000, 0)
        );
        assert!(with("10").unwrap_err().to_string().contains("between 1k and 1P"));
        assert!(with("fast").unwrap_err().to_string().contains("not a quantity"));
        assert_eq!(bandwidth(&BTreeMap::new()).unwrap(), None);
    }
}
