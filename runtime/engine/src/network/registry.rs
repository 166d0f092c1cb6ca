//! The networks by name. Every engine has `bridge`, `host` and `none`: their ids are kept, and so is
//! the subnet of the bridge for as long as nothing else of the machine has it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, id};
use berth_shim::record::{self as disk, Found};

use super::{
    object::{BRIDGE, Driver, Network, Pool},
    pools,
};
use crate::http::error::{Failure, Result};

#[derive(Debug)]
pub(crate) struct Networks {
    /// Where the records of those are that users have made.
    directory: PathBuf,
    inner: Arc<Mutex<Inner>>,
    /// Held while one is made or removed.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Held while the names of containers are written.
    pub(super) naming: std::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    all: Vec<Arc<Network>>,
    /// How many runs that begin, and connections, go by the network with this id.
    holds: BTreeMap<String, usize>,
}

/// Keeps networks from being removed, while a container comes to them.
#[derive(Debug)]
pub(crate) struct Hold {
    inner: Arc<Mutex<Inner>>,
    ids: Vec<String>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        for id in &self.ids {
            if let Some(count) = inner.holds.get_mut(id) {
                *count -= 1;
            }
        }
        inner.holds.retain(|_, count| *count > 0);
    }
}

impl Networks {
    /// Reads them back, or makes those that every engine has.
    ///
    /// # Errors
    /// The disk cannot be read or written, or all pools of addresses are in use.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        let directory = root.join("engine/networks");
        blocking(|| fs::create_dir_all(&directory))
            .with_context(|| format!("make {}", directory.display()))?;
        let custom = blocking(|| read_custom(&directory))?;
        let mut all: Vec<Arc<Network>> =
            predefined(root, &custom)?.into_iter().map(Arc::new).collect();
        all.extend(custom.into_iter().map(Arc::new));
        Ok(Self {
            directory,
            inner: Arc::new(Mutex::new(Inner { all, holds: BTreeMap::new() })),
            changing: tokio::sync::Mutex::default(),
            naming: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Network>> {
        lock(&self.inner).all.clone()
    }

    /// Keeps the networks with these ids from being removed.
    ///
    /// # Errors
    /// 404 for one that is not there any more.
    pub(crate) fn hold(&self, ids: impl IntoIterator<Item = String>) -> Result<Hold> {
        let ids: Vec<String> = ids.into_iter().collect();
        let mut inner = lock(&self.inner);
        for id in &ids {
            if !inner.all.iter().any(|network| network.id == *id) {
                return Err(Failure::not_found(format!("network {id} not found")));
            }
        }
        for id in &ids {
            *inner.holds.entry(id.clone()).or_default() += 1;
        }
        Ok(Hold { inner: self.inner.clone(), ids })
    }

    /// Takes one out that nobody is coming to: it is not found from then on. Whether that is so.
    pub(super) fn close(&self, network: &Network) -> bool {
        let mut inner = lock(&self.inner);
        let is_free = !inner.holds.contains_key(&network.id);
        if is_free {
            inner.all.retain(|one| one.id != network.id);
        }
        is_free
    }

    /// Puts one back that could not be removed.
    pub(super) fn reopen(&self, network: Arc<Network>) {
        let mut inner = lock(&self.inner);
        inner.all.push(network);
        inner.all.sort_by_key(|network| (network.is_custom(), network.created_at));
    }

    /// Adds one, which is on record once this has returned.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub(super) fn insert(&self, network: Network) -> anyhow::Result<()> {
        let path = self.path(&network);
        blocking(|| disk::write_durable(&path, &network))
            .with_context(|| format!("write {}", path.display()))?;
        lock(&self.inner).all.push(Arc::new(network));
        Ok(())
    }

    /// Deletes the record of one that is closed.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub(super) fn forget(&self, network: &Network) -> anyhow::Result<()> {
        let path = self.path(network);
        blocking(|| disk::remove(&path)).with_context(|| format!("remove {}", path.display()))
    }

    fn path(&self, network: &Network) -> PathBuf {
        self.directory.join(&network.id)
    }

    /// Finds one by its name, its id, or a prefix that only its id has.
    ///
    /// # Errors
    /// 404, and 400 for a prefix of several.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<Network>> {
        let all = &lock(&self.inner).all;
        let exact = all.iter().find(|network| network.id == text);
        if let Some(network) = exact.or_else(|| all.iter().find(|network| network.name == text)) {
            return Ok(network.clone());
        }
        let mut matching =
            all.iter().filter(|network| !text.is_empty() && network.id.starts_with(text));
        match (matching.next(), matching.next()) {
            (Some(network), None) => Ok(network.clone()),
            (None, _) => Err(Failure::not_found(format!("network {text} not found"))),
            (Some(_), Some(_)) => Err(Failure::bad_request(format!(
                "network {text} is ambiguous (2 matches found on name)"
            ))),
        }
    }

    /// The network that a container's `NetworkMode` names; `None` with that of another container.
    ///
    /// # Errors
    /// 404 if there is no such network.
    pub(crate) fn of_mode(&self, mode: &str) -> Result<Option<Arc<Network>>> {
        match mode {
            "" | "default" => self.find("bridge").map(Some),
            mode if mode.starts_with("container:") => Ok(None),
            mode => self.find(mode).map(Some),
        }
    }
}

/// Those that users have made. One whose record is damaged is not there, and is told.
fn read_custom(directory: &Path) -> anyhow::Result<Vec<Network>> {
    let mut networks = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        // Records that are being written have an extension.
        if path.extension().is_some() {
            continue;
        }
        match disk::read::<Network>(&path) {
            Ok(Found::Record(network)) => networks.push(network),
            _ => tracing::error!(
                "{} is damaged: the network is not there. Remove the file, and create it again",
                path.display()
            ),
        }
    }
    networks.sort_by_key(|network| network.created_at);
    Ok(networks)
}

fn predefined(root: &Path, custom: &[Network]) -> anyhow::Result<Vec<Network>> {
    let path = root.join("engine/networks.json");
    let found = blocking(|| disk::read::<Vec<Network>>(&path));
    let before = found.with_context(|| format!("read {}", path.display()))?.record();
    let mut networks = before.clone().unwrap_or_else(|| {
        [("none", Driver::Null), ("host", Driver::Host), ("bridge", Driver::Bridge)]
            .map(|(name, driver)| made(name, driver))
            .into()
    });
    let taken = pools::taken(custom);
    for network in networks.iter_mut().filter(|network| network.driver == Driver::Bridge) {
        let routes = pools::routes().context("read the routes of this machine")?;
        let before = network.pools.first().map(|pool| pool.subnet).or(network.subnet.take());
        let chosen = pools::choose(before, BRIDGE, &routes, &taken)?;
        network.pools = vec![Pool::new(chosen.trunc(), chosen.addr())];
    }
    if before.as_ref() != Some(&networks) {
        blocking(|| disk::write_durable(&path, &networks))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(networks)
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn made(name: &str, driver: Driver) -> Network {
    Network {
        id: id::random_hex(32),
        name: name.to_owned(),
        created_at: now(),
        driver,
        pools: Vec::new(),
        subnet: None,
        custom: None,
    }
}
