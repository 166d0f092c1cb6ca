//! Which network pods get: that of the first valid conf list by name, of a template, or the
//! built-in bridge.
//!
//! The directory is read each time the question comes up, because agents of CNI plugins change it
//! at any time, without notice. While a file is being written, or is broken, the network that was
//! valid before stays in use.

use std::{
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, anyhow, bail};
use berth_base::config;
use berth_cni::ConfList;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    bridge::{Bridge, Subnet},
    capabilities::range_sets,
    template,
};

/// The network of pods until the kubelet assigns another one.
const DEFAULT_SUBNET: &str = "10.88.0.0/16";
/// Extensions of conf files, as in libcni.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A conf list, parsed and as it was written.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub list: ConfList,
    pub text: String,
}

impl Network {
    /// The conf list of a bridge of this machine's own. `ipam` is where the reservations of addresses
    /// are.
    pub(super) fn of_bridge(bridge: &Bridge, ipam: &Path) -> Self {
        let ranges: Value = bridge
            .subnets
            .iter()
            .map(|subnet| match bridge.addresses.iter().any(|it| subnet.net.contains(it)) {
                // An address that is asked for may be any of the subnet.
                true => Subnet::new(subnet.net, subnet.gateway).range_set(),
                false => subnet.range_set(),
            })
            .collect();
        let text = json!({
            "cniVersion": berth_cni::VERSION,
            "name": bridge.network,
            "plugins": [{
                "type": "berth-bridge",
                "bridge": bridge.interface,
                "isGateway": true,
                "isDefaultGateway": bridge.is_default && !bridge.internal,
                "ipMasq": bridge.masquerades && !bridge.internal,
                "portIsolation": bridge.isolates_ports,
                "mtu": bridge.mtu,
                "isolation": if bridge.internal { "internal" } else { "closed" },
                "capabilities": { "portMappings": true, "mac": true, "ips": true },
                "ipam": {
                    "type": "berth-local",
                    "ranges": ranges,
                    "dataDir": ipam,
                    "lowestFirst": true,
                },
            }],
        })
        .to_string();
        let list = ConfList::parse(&text).expect("our own conf list is one");
        Self { list, text }
    }
}

#[derive(Debug)]
pub(super) struct Confs {
    directory: PathBuf,
    template: Option<PathBuf>,
    /// Where the built-in network keeps its address reservations.
    ipam: PathBuf,
    /// The network of the last valid file.
    last: Mutex<Option<Network>>,
}

/// The network of the template needs what the kubelet has not told yet, as at every first start.
#[derive(Debug)]
pub(super) struct Untold {
    template: PathBuf,
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} waits for the kubelet to tell the pods' network", self.template.display())
    }
}

impl Error for Untold {}

/// What the directory has in it.
enum Found {
    Network(Network),
    /// Files, but none that is valid. The error is that of the first.
    Broken(anyhow::Error),
    Nothing,
}

impl Confs {
    pub(super) fn new(config: &config::Cni, ipam: PathBuf) -> Self {
        Self {
            directory: config.conf_dir.clone(),
            template: config.conf_template.clone(),
            ipam,
            last: Mutex::default(),
        }
    }

    /// The network in use, and what is wrong with the files if it is that of an earlier one.
    /// `ranges` are the networks that the kubelet assigned to the node's pods.
    ///
    /// # Errors
    /// No file is valid and none was before. Or files were there and are gone: the built-in network
    /// must not take over pods that another one was made for.
    pub(super) fn current(
        &self,
        ranges: &[IpNet],
    ) -> anyhow::Result<(Network, Option<anyhow::Error>)> {
        // Before the lock, since a directory on a network filesystem may take its time.
        let found = self.read()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (found, last.as_ref()) {
            (Found::Network(network), before) => {
                // The question comes up for every pod; the log says it once for each change.
                if before.is_none_or(|before| before.text != network.text) {
                    tracing::info!(network = network.list.name, "new pods get this network");
                    *last = Some(network.clone());
                }
                Ok((network, None))
            }
            (Found::Broken(error), Some(network)) => Ok((network.clone(), Some(error))),
            (Found::Broken(error), None) => Err(error),
            (Found::Nothing, Some(network)) => {
                let directory = self.directory.display();
                bail!("the conf list of network {:?} is gone from {directory}", network.list.name)
            }
            (Found::Nothing, None) => Ok((self.without_files(ranges)?, None)),
        }
    }

    fn read(&self) -> anyhow::Result<Found> {
        let mut paths: Vec<PathBuf> = match fs::read_dir(&self.directory) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", self.directory.display()));
            }
        };
        // To open a FIFO would wait for a writer.
        paths.retain(|path| is_conf(path) && path.is_file());
        // By name, as libcni does: agents choose names such as 10-flannel.conflist for that.
        paths.sort_unstable();
        let mut failure = None;
        for path in paths {
            match read_list(&path) {
                Ok(network) => return Ok(Found::Network(network)),
                // The first file is the one that was meant to be used.
                Err(error) => failure = failure.or(Some(anyhow!("{}: {error}", path.display()))),
            }
        }
        Ok(failure.map_or(Found::Nothing, Found::Broken))
    }

    /// The network of the template, or the built-in one.
    fn without_files(&self, ranges: &[IpNet]) -> anyhow::Result<Network> {
        let Some(path) = &self.template else { return Ok(built_in(&self.ipam, ranges)) };
        let shown = path.display();
        // Filled in with nothing, it would be a valid list whose pods get no address.
        if ranges.is_empty() {
            return Err(Untold { template: path.clone() }.into());
        }
        let source = fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
        let text = template::fill(&source, ranges).map_err(|error| anyhow!("{shown}: {error}"))?;
        let list =
            ConfList::parse(&text).map_err(|error| anyhow!("{shown}, filled in: {error}"))?;
        Ok(Network { list, text })
    }
}

fn is_conf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}

fn read_list(path: &Path) -> Result<Network, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    Ok(Network { list: ConfList::parse(&text)?, text })
}

/// The network of a machine with nothing installed but berth: a bridge of our own plugin.
fn built_in(ipam: &Path, ranges: &[IpNet]) -> Network {
    let sets: Value = if ranges.is_empty() {
        json!([[{ "subnet": DEFAULT_SUBNET }]])
    } else {
        range_sets(ranges)
    };
    let text = json!({
        "cniVersion": berth_cni::VERSION,
        "name": "berth",
        "plugins": [{
            "type": "berth-bridge",
            "bridge": "berth0",
            "isDefaultGateway": true,
            "ipMasq": true,
            // A pod may be an endpoint of the Service that it asks. Where bridged frames pass
            // kube-proxy's rules, such a frame leaves through the port that it came from.
            "hairpinMode": true,
            // The bridge may still have the address of the network before.
            "forceAddress": !ranges.is_empty(),
            // Containers of the engine do not reach pods, but for their Services.
            "isolation": "bridges",
            // What berth-bridge can do; the runtime passes the arguments of these only.
            "capabilities": { "portMappings": true, "bandwidth": true },
            "ipam": { "type": "berth-local", "ranges": sets, "dataDir": ipam },
        }],
    })
    .to_string();
    let list = ConfList::parse(&text).expect("our own conf list is one");
    Network { list, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_a_conf_list_of_one_plugin() {
        let bridge = Bridge {
            inside: "eth0".to_owned(),
            network: "abc".to_owned(),
            interface: "docker0".to_owned(),
            subnets: vec![Subnet::new("172.17.0.0/16".parse().unwrap(), [172, 17, 0, 1].into())],
            internal: false,
            masquerades: true,
            isolates_ports: false,
            mtu: None,
            is_default: true,
            addresses: Vec::new(),
            mac: None,
        };
        let list = Network::of_bridge(&bridge, Path::new("/x")).list;
        let plugin = json!(list.plugins[0]);
        assert_eq!((list.name.as_str(), &plugin["bridge"]), ("abc", &json!("docker0")));
        assert_eq!(
            plugin["ipam"]["ranges"],
            json!([[{ "subnet": "172.17.0.0/16", "gateway": "172.17.0.1" }]])
        );
        assert_eq!((&plugin["ipMasq"], &plugin["isolation"]), (&json!(true), &json!("closed")));
    }

    fn confs(directory: &Path) -> Confs {
        let config = config::Cni { conf_dir: directory.to_owned(), ..config::Cni::default() };
        Confs::new(&config, "/run/berth/ipam".into())
    }

    #[test]
    fn what_was_good_stays_until_something_better_comes() {
        let directory = tempfile::tempdir().unwrap();
        let confs = confs(directory.path());
        let name = |confs: &Confs| {
            confs.current(&[]).map(|(network, wrong)| (network.list.name, wrong.is_some()))
        };
        assert_eq!(name(&confs).unwrap(), ("berth".to_owned(), false));
        let list = |name: &str| {
            format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"a"}}]}}"#)
        };
        let path = directory.path().join("10-a.conflist");
        fs::write(&path, "{").unwrap();
        assert!(confs.current(&[]).unwrap_err().to_string().contains("10-a.conflist"));
        fs::write(&path, list("one")).unwrap();
        assert_eq!(name(&confs).unwrap(), ("one".to_owned(), false));
        fs::write(&path, "{").unwrap();
        assert_eq!(name(&confs).unwrap(), ("one".to_owned(), true));
        fs::write(
            directory.path().join("20-b.conf"),
            r#"{"cniVersion":"1.0.0","name":"two","type":"b"}"#,
        )
        .unwrap();
        assert_eq!(name(&confs).unwrap(), ("two".to_owned(), false));
        for entry in fs::read_dir(directory.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(confs.current(&[]).unwrap_err().to_string().contains("is gone"));
    }

    #[test]
    fn the_built_in_network_takes_what_the_kubelet_tells() {
        let ranges: Vec<IpNet> =
            ["10.244.3.0/24", "fd00:3::/64"].map(|text| text.parse().unwrap()).into();
        let network = built_in(Path::new("/x"), &ranges);
        let ipam = &network.list.plugins[0]["ipam"];
        assert_eq!(
            ipam["ranges"],
            json!([[{ "subnet": "10.244.3.0/24" }], [{ "subnet": "fd00:3::/64" }]])
        );
        assert!(network.list.plugins[0]["forceAddress"].as_bool().unwrap());
    }
}
