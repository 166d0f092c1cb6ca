//! What plugins are told of a pod: CNI_ARGS, and the capabilities, of which a plugin gets those that its configuration declares
//! (CONVENTIONS.md of the CNI specification).

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{anyhow, bail};
use berth_cni::{Bandwidth, PortMapping};
use ipnet::IpNet;
use serde_json::{Value, json};

/// One pod's part of the network.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    /// `servers`, `searches`, `options`.
    pub dns: Option<Value>,
    pub cgroup_parent: String,
}

impl Pod {
    /// Keys and values of CNI_ARGS, as the kubelet's runtimes pass them.
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

    /// All that there are, whether a plugin declares them or not. `ranges` are the pods' networks, as the kubelet told them.
    ///
    /// # Errors
    /// An annotation about bandwidth that is no rate.
    pub(super) fn capabilities(&self, ranges: &[IpNet]) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        let mut tell = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
        if !self.ports.is_empty() {
            tell("portMappings", json!(self.ports));
        }
        if let Some(bandwidth) = bandwidth(&self.annotations)? {
            tell("bandwidth", json!(bandwidth));
        }
        if let Some(dns) = &self.dns {
            tell("dns", dns.clone());
        }
        if !ranges.is_empty() {
            tell("ipRanges", json!(sets(ranges)));
        }
        if !self.cgroup_parent.is_empty() {
            tell("cgroupPath", json!(self.cgroup_parent));
        }
        tell("io.kubernetes.cri.pod-annotations", json!(self.annotations));
        Ok(all)
    }
}

/// Range sets of host-local: an address of each network.
pub(super) fn sets(ranges: &[IpNet]) -> Value {
    ranges.iter().map(|range| json!([{ "subnet": range }])).collect()
}

/// Of the annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, in bits per second.
///
/// A burst is a second's worth: as much as 4 Gbit, which the peers allow, would let most connections pass before any limit is felt.
fn bandwidth(annotations: &BTreeMap<String, String>) -> anyhow::Result<Option<Bandwidth>> {
    let rate = |direction: &str| -> anyhow::Result<u64> {
        let name = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = annotations.get(&name) else { return Ok(0) };
        let rate = quantity(text).ok_or_else(|| anyhow!("annotation {name}: {text:?} is not a quantity"))?;
        // The bounds of the kubelet.
        if !(1e3..=1e15).contains(&rate) {
            bail!("annotation {name}: {text} is not between 1k and 1P");
        }
        Ok(rate as u64)
    };
    let (ingress_rate, egress_rate) = (rate("ingress")?, rate("egress")?);
    if ingress_rate == 0 && egress_rate == 0 {
        return Ok(None);
    }
    let burst = |rate: u64| rate.min(u64::from(u32::MAX));
    Ok(Some(Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    }))
}

/// A quantity of Kubernetes (k8s.io/apimachinery, resource.Quantity): `10M`, `1.5Gi`, `1e6`.
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
    let (number, factor) = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    // A number, and nothing else that a parser of floats takes, as "inf".
    let is_number = number.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '+');
    number.parse::<f64>().ok().filter(|_| is_number).map(|number| number * factor)
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
        let with =
            |value: &str| bandwidth(&BTreeMap::from([("kubernetes.io/egress-bandwidth".to_owned(), value.to_owned())]));
        let limits = with("10M").unwrap().unwrap();
        assert_eq!((limits.egress_rate, limits.egress_burst, limits.ingress_rate), (10_000_000, 10_000_000, 0));
        assert!(with("10").unwrap_err().to_string().contains("between 1k and 1P"));
        assert!(with("fast").unwrap_err().to_string().contains("not a quantity"));
        assert_eq!(bandwidth(&BTreeMap::new()).unwrap(), None);
    }
}
