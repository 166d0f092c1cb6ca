//! The engine: its containers, and the node on which they run.

use std::sync::Arc;

use anyhow::Context;
use berth_node::Node;

use crate::{
    container::{recover, registry::Registry},
    events::Events,
    http::error::{Failure, Result},
    network::{Networks, ports::Ports},
    routes::execs::Execs,
    streams::logs::LogWatcher,
};

#[derive(Debug)]
pub struct Engine {
    /// The node of the engine's runs.
    pub(crate) node: Arc<Node>,
    pub(crate) containers: Registry,
    pub(crate) execs: Execs,
    pub(crate) events: Events,
    /// Tells those who follow a log.
    pub(crate) logs: Arc<LogWatcher>,
    pub(crate) networks: Networks,
    /// The ports of the host that its runs have.
    pub(crate) ports: Ports,
}

impl Engine {
    /// Reads the containers of an earlier daemon back, and takes up what it left undone.
    ///
    /// # Errors
    /// Their directory cannot be read.
    pub async fn start(node: Arc<Node>) -> anyhow::Result<Arc<Self>> {
        let networks = Networks::open(&node.host.layout.root)?;
        let engine = Arc::new(Self {
            node,
            networks,
            ports: Ports::default(),
            containers: Registry::default(),
            execs: Execs::default(),
            events: Events::default(),
            logs: LogWatcher::start().context("watch the logs of containers")?,
        });
        recover::recover(&engine).await?;
        Ok(engine)
    }

    /// Takes a name for a container: the one that was asked for, or one that is made up.
    ///
    /// # Errors
    /// 400 for one that is not valid, 409 for one in use.
    pub(crate) fn name(&self, asked: &str, id: &str) -> Result<String> {
        let name = asked.strip_prefix('/').unwrap_or(asked);
        if name.is_empty() {
            let name = id[..12].to_owned();
            self.containers.reserve(&name, id)?;
            return Ok(name);
        }
        let is_valid = name.len() > 1
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_valid {
            return Err(Failure::bad_request(format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        self.containers.reserve(name, id)?;
        Ok(name.to_owned())
    }
}
