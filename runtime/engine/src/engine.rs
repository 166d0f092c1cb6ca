//! The engine: its containers, and the node on which they run.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use berth_base::blocking::blocking;
use berth_node::Node;

use crate::{
    build::Running,
    container::registry::Registry,
    events::Events,
    http::error::Result,
    names,
    network::{Networks, members::Members, name_server::NameServer, ports::Ports},
    routes::execs::Execs,
    streams::logs::LogWatcher,
    volumes::Volumes,
};

#[derive(Debug)]
pub struct Engine {
    /// The node of the engine's runs.
    pub(crate) node: Arc<Node>,
    /// That of Kubernetes' pods, which is only asked for the images that they use.
    pub(crate) pods: Arc<Node>,
    pub(crate) containers: Registry,
    pub(crate) execs: Execs,
    pub(crate) builds: Running,
    pub(crate) events: Events,
    /// Tells those who follow a log.
    pub(crate) logs: Arc<LogWatcher>,
    pub(crate) networks: Networks,
    pub(crate) members: Members,
    pub(crate) name_server: Arc<NameServer>,
    pub(crate) volumes: Volumes,
    /// The ports of the host that its runs have.
    pub(crate) ports: Ports,
    /// Held while images are pruned.
    pub(crate) image_prune: Mutex<()>,
}

impl Engine {
    /// Without its containers, which `start` reads.
    ///
    /// # Errors
    /// The record of the networks or the volumes cannot be read, or no descriptors are left.
    pub(crate) fn new(node: Arc<Node>, pods: Arc<Node>) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            networks: Networks::open(&node.host.layout.root)?,
            members: Members::default(),
            name_server: Arc::new(blocking(|| NameServer::open(&node.host.layout))?),
            volumes: blocking(|| Volumes::open(&node.host.layout))?,
            node,
            pods,
            ports: Ports::default(),
            image_prune: Mutex::default(),
            containers: Registry::default(),
            execs: Execs::default(),
            builds: Running::default(),
            events: Events::default(),
            logs: LogWatcher::start().context("watch the logs of containers")?,
        }))
    }

    /// Takes a name for a container: the one that was asked for, or one that is made up.
    ///
    /// # Errors
    /// 400 for one that is not valid, 409 for one in use.
    pub(crate) fn name(&self, asked: &str, id: &str) -> Result<String> {
        if asked.is_empty() {
            return self.generated_name(id);
        }
        let name = names::check(asked)?;
        self.containers.reserve(name, id)?;
        Ok(name.to_owned())
    }

    fn generated_name(&self, id: &str) -> Result<String> {
        let generated = (0..names::ATTEMPTS).map(names::generate);
        let free = generated.into_iter().find(|name| self.containers.reserve(name, id).is_ok());
        match free {
            Some(name) => Ok(name),
            // Nobody can have chosen that one.
            None => self.containers.reserve(&id[..12], id).map(|()| id[..12].to_owned()),
        }
    }
}
