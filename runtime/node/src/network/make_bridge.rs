//! Bridges of the engine's networks, made before the first container is attached and removed after the
//! last.

use serde_json::Value;

use super::{Networks, bridge::Bridge, conf::Network, exec_config};

impl Networks {
    /// Makes a bridge that containers will be attached to. Success when it is there.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn make_bridge(&self, bridge: &Bridge) -> anyhow::Result<()> {
        self.run_for_bridge(bridge, "BERTH_UP").await
    }

    /// Removes a bridge that nothing is attached to any more, with all that was made for it. Success
    /// when nothing is left.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn remove_bridge(&self, bridge: &Bridge) -> anyhow::Result<()> {
        self.run_for_bridge(bridge, "BERTH_DOWN").await
    }

    async fn run_for_bridge(&self, bridge: &Bridge, command: &str) -> anyhow::Result<()> {
        let list = Network::of_bridge(bridge, &self.layout.ipam()).list;
        for plugin in &list.plugins {
            let conf = exec_config::derive(&list, plugin, Value::Null, None);
            let program = self.plugins.find(plugin).await?;
            self.plugins.run(&program, command, &[], &conf).await?;
        }
        Ok(())
    }
}
