//! Which network pods are to have: the first valid conf list by name, a template, or the built-in bridge.
//!
//! The directory is read whenever the question comes up, so that no change is missed. What was good stays in use while a file is being
//! written, or is broken.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, anyhow, bail};
use berth_cni::ConfList;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{capabilities::sets, template};
use crate::config;

/// A conf list and its own words.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub list: ConfList,
    pub text: String,
}

#[derive(Debug)]
pub(super) struct Confs {
    directory: PathBuf,
    template: Option<PathBuf>,
    /// Data directory of the built-in network.
    ipam: PathBuf,
    /// The network of a file that was used last.
    last: Mutex<Option<Network>>,
}

/// What the directory has to say.
enum Found {
    Network(Network),
    /// Files, and none that can be used.
    Broken(anyhow::Error),
    Nothing,
}

impl Confs {
    pub(super) fn new(config: &config::Cni, ipam: PathBuf) -> Self {
        let (directory, template) = (config.conf_dir.clone(), config.conf_template.clone());
        Self { directory, template, ipam, last: Mutex::new(None) }
    }

    /// The network in use, and what is wrong with the files that should say so. `ranges` are the pods' networks, as the kubelet told
    /// them.
    ///
    /// # Errors
    /// Files that cannot be used, and none that could be before; files that were there and are gone: the built-in network would take
    /// over pods that another was made for.
    pub(super) fn current(&self, ranges: &[IpNet]) -> anyhow::Result<(Network, Option<anyhow::Error>)> {
        let found = self.read()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (found, last.as_ref()) {
            (Found::Network(network), before) => {
                if before.is_none_or(|before| before.text != network.text) {
                    tracing::info!(network = network.list.name, "pods get this network from now on");
                    *last = Some(network.clone());
                }
                Ok((network, None))
            }
            (Found::Broken(error), Some(network)) => Ok((network.clone(), Some(error))),
            (Found::Broken(error), None) => Err(error),
            (Found::Nothing, Some(network)) => {
                bail!("the conf list of network {:?} is gone from {}", network.list.name, self.directory.display())
            }
            (Found::Nothing, None) => Ok((self.without_files(ranges)?, None)),
        }
    }

    fn read(&self) -> anyhow::Result<Found> {
        let mut names: Vec<PathBuf> = match fs::read_dir(&self.directory) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.directory.display())),
        };
        names.retain(|path| {
            let is_known = |extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known);
            path.extension().is_some_and(is_known)
        });
        names.sort_unstable();
        let mut failure = None;
        for path in names {
            match read_list(&path) {
                Ok(network) => return Ok(Found::Network(network)),
                // The first is the one that should have been it.
                Err(error) => failure = failure.or(Some(anyhow!("{}: {error}", path.display()))),
            }
        }
        Ok(failure.map_or(Found::Nothing, Found::Broken))
    }

    fn without_files(&self, ranges: &[IpNet]) -> anyhow::Result<Network> {
        let Some(path) = &self.template else { return Ok(built_in(&self.ipam, ranges)) };
        if ranges.is_empty() {
            bail!("{} waits for the kubelet to tell the pods' network", path.display());
        }
        let source = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let text = template::fill(&source, ranges).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        let list = ConfList::parse(&text).map_err(|error| anyhow!("{}, filled in: {error}", path.display()))?;
        Ok(Network { list, text })
    }
}

fn read_list(path: &Path) -> Result<Network, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    Ok(Network { list: ConfList::parse(&text)?, text })
}

/// A bridge of ours, so that a machine works with nothing installed.
fn built_in(ipam: &Path, ranges: &[IpNet]) -> Network {
    let told: Value = if ranges.is_empty() { json!([[{ "subnet": "10.88.0.0/16" }]]) } else { sets(ranges) };
    let text = json!({
        "cniVersion": berth_cni::VERSION,
        "name": "berth",
        "plugins": [{
            "type": "berth-bridge", "bridge": "berth0", "isDefaultGateway": true, "ipMasq": true,
            // The kubelet may tell another network than the bridge was made for.
            "forceAddress": !ranges.is_empty(),
            "capabilities": { "portMappings": true, "bandwidth": true },
            "ipam": { "type": "berth-local", "ranges": told, "dataDir": ipam },
        }],
    });
    let text = text.to_string();
    let list = ConfList::parse(&text).expect("our own conf list is one");
    Network { list, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confs(directory: &Path) -> Confs {
        let config = config::Cni { conf_dir: directory.to_owned(), ..config::Cni::default() };
        Confs::new(&config, "/run/berth/ipam".into())
    }

    #[test]
    fn what_was_good_stays_until_something_better_comes() {
        let directory = tempfile::tempdir().unwrap();
        let confs = confs(directory.path());
        let name = |confs: &Confs| confs.current(&[]).map(|(network, wrong)| (network.list.name, wrong.is_some()));
        assert_eq!(name(&confs).unwrap(), ("berth".to_owned(), false));
        let list = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"a"}}]}}"#);
        let path = directory.path().join("10-a.conflist");
        fs::write(&path, "{").unwrap();
        assert!(confs.current(&[]).unwrap_err().to_string().contains("10-a.conflist"));
        fs::write(&path, list("one")).unwrap();
        assert_eq!(name(&confs).unwrap(), ("one".to_owned(), false));
        fs::write(&path, "{").unwrap();
        assert_eq!(name(&confs).unwrap(), ("one".to_owned(), true));
        fs::write(directory.path().join("20-b.conf"), r#"{"cniVersion":"1.0.0","name":"two","type":"b"}"#).unwrap();
        assert_eq!(name(&confs).unwrap(), ("two".to_owned(), false));
        for entry in fs::read_dir(directory.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(confs.current(&[]).unwrap_err().to_string().contains("is gone"));
    }

    #[test]
    fn the_built_in_network_takes_what_the_kubelet_tells() {
        let ranges: Vec<IpNet> = ["10.244.3.0/24", "fd00:3::/64"].map(|text| text.parse().unwrap()).into();
        let network = built_in(Path::new("/x"), &ranges);
        let ipam = &network.list.plugins[0]["ipam"];
        assert_eq!(ipam["ranges"], json!([[{ "subnet": "10.244.3.0/24" }], [{ "subnet": "fd00:3::/64" }]]));
        assert!(network.list.plugins[0]["forceAddress"].as_bool().unwrap());
    }
}
