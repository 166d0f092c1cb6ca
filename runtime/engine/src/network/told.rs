//! What `berth-dns` is told: `networks/ID.json` and `containers/ID.json` in its directory, which its
//! documentation describes. They are of this boot, as what they speak of, and need no disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use berth_base::error::ignore_not_found;
use berth_shim::record as disk;
use serde::Serialize;

use super::members::OfNetwork;

/// A container that asks.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Asker {
    pub namespace: PathBuf,
    /// The ids of its networks of users, in the order in which they are asked.
    pub networks: Vec<String>,
    /// Names of other containers, by the aliases that only this one has for them.
    pub links: BTreeMap<String, String>,
    pub resolvers: Vec<Resolver>,
}

/// Who is asked for names that are no container's.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Resolver {
    pub address: IpAddr,
    pub from: From,
}

/// The network namespace that a resolver is asked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    Container,
    Host,
}

#[derive(Serialize)]
struct OnNetwork<'a> {
    name: &'a str,
    members: Vec<Named<'a>>,
}

#[derive(Serialize)]
struct Named<'a> {
    names: &'a [String],
    addresses: Vec<IpAddr>,
}

/// The files.
#[derive(Debug)]
pub(super) struct Told {
    pub directory: PathBuf,
}

impl Told {
    /// Makes the directories.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        for part in ["networks", "containers", "serving"] {
            fs::create_dir_all(directory.join(part))?;
        }
        Ok(Self { directory })
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.directory.join("containers")
    }

    pub(super) fn serving(&self) -> PathBuf {
        self.directory.join("serving")
    }

    /// Whether any container is to be served.
    pub(super) fn has_containers(&self) -> bool {
        let listed = fs::read_dir(self.containers()).into_iter().flatten().flatten();
        listed.into_iter().any(|entry| id(&entry.path()).is_some())
    }

    pub(super) fn knows(&self, container: &str) -> bool {
        path(&self.containers(), container).exists()
    }

    /// Tells who is on a network.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub(super) fn network(&self, id: &str, name: &str, members: &OfNetwork) -> io::Result<()> {
        let path = path(&self.directory.join("networks"), id);
        let addresses = |endpoint: &berth_node::network::Endpoint| {
            let both = [endpoint.ipv4, endpoint.ipv6].into_iter().flatten();
            both.map(|(address, _)| address.addr()).collect::<Vec<IpAddr>>()
        };
        let members: Vec<Named> = members
            .values()
            .map(|member| Named {
                names: &member.names,
                addresses: member.endpoint.as_ref().map(addresses).unwrap_or_default(),
            })
            .collect();
        match members.is_empty() {
            true => ignore_not_found(fs::remove_file(path)),
            false => disk::write(&path, &OnNetwork { name, members }),
        }
    }

    /// Tells that a container asks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn container(&self, id: &str, asker: &Asker) -> io::Result<()> {
        disk::write(&path(&self.containers(), id), asker)
    }

    /// Tells that a container asks no more; success if it did not.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn forget(&self, container: &str) -> io::Result<()> {
        ignore_not_found(fs::remove_file(path(&self.containers(), container)))?;
        // A server that has died meanwhile does not take its answer back.
        ignore_not_found(fs::remove_file(self.serving().join(container)))
    }

    /// Removes what was told of other networks and other containers than these.
    ///
    /// # Errors
    /// A directory cannot be read, or a file not be removed.
    pub(super) fn keep(
        &self,
        networks: &BTreeSet<String>,
        containers: &BTreeSet<String>,
    ) -> io::Result<()> {
        for (part, known) in [("networks", networks), ("containers", containers)] {
            for entry in fs::read_dir(self.directory.join(part))? {
                let path = entry?.path();
                if id(&path).is_none_or(|id| !known.contains(&id)) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}

fn path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.json"))
}

/// Of what, unless it is a file that is being written.
fn id(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.strip_suffix(".json").map(str::to_owned)
}
