//! The three networks that every engine has: `bridge`, `host` and `none`. Their ids are kept, and so
//! is the subnet of the bridge for as long as nothing else of the machine has it.

use std::{fmt, fs, path::Path};

use anyhow::Context;
use berth_base::{blocking::blocking, clock::now, id};
use berth_shim::record as disk;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::pools;
use crate::http::error::{Failure, Result};

/// The interface of the network `bridge`.
pub(crate) const BRIDGE: &str = "docker0";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    Bridge,
    Host,
    Null,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub driver: Driver,
    /// Of a bridge; with the gateway's address.
    pub subnet: Option<IpNet>,
}

#[derive(Debug, Default)]
pub(crate) struct Networks(Vec<Network>);

impl Networks {
    /// Reads them back, or makes them.
    ///
    /// # Errors
    /// The disk cannot be read or written, or all pools of addresses are in use.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        let directory = root.join("engine");
        let path = directory.join("networks.json");
        let found = blocking(|| disk::read::<Vec<Network>>(&path));
        let before = found.with_context(|| format!("read {}", path.display()))?.record();
        let mut networks = before.clone().unwrap_or_else(|| {
            [("none", Driver::Null), ("host", Driver::Host), ("bridge", Driver::Bridge)]
                .map(|(name, driver)| made(name, driver))
                .into()
        });
        for network in networks.iter_mut().filter(|network| network.driver == Driver::Bridge) {
            let routes = pools::routes().context("read the routes of this machine")?;
            network.subnet = Some(pools::choose(network.subnet, BRIDGE, &routes)?);
        }
        if before.as_ref() != Some(&networks) {
            blocking(|| {
                fs::create_dir_all(&directory)?;
                disk::write_durable(&path, &networks)
            })
            .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self(networks))
    }

    pub(crate) fn all(&self) -> &[Network] {
        &self.0
    }

    /// Finds one by its name, its id, or a prefix that only its id has.
    ///
    /// # Errors
    /// 404, and 400 for a prefix of several.
    pub(crate) fn find(&self, text: &str) -> Result<&Network> {
        let exact = self.0.iter().find(|network| network.id == text || network.name == text);
        if let Some(network) = exact {
            return Ok(network);
        }
        let mut matching =
            self.0.iter().filter(|network| !text.is_empty() && network.id.starts_with(text));
        match (matching.next(), matching.next()) {
            (Some(network), None) => Ok(network),
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
    pub(crate) fn of_mode(&self, mode: &str) -> Result<Option<&Network>> {
        match mode {
            "" | "default" => self.find("bridge").map(Some),
            mode if mode.starts_with("container:") => Ok(None),
            mode => self.find(mode).map(Some),
        }
    }
}

fn made(name: &str, driver: Driver) -> Network {
    let name = name.to_owned();
    Network { id: id::random_hex(32), name, created_at: now(), driver, subnet: None }
}
