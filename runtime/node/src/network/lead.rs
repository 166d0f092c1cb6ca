//! Which of a pod's bridges leads it outside, while it runs.

use anyhow::Context;
use serde_json::json;

use super::{Networks, bridge::Bridge, capabilities::Pod, conf::Network, exec_config};

impl Networks {
    /// Lets the default route of a pod that is attached to this bridge lead there or not, as
    /// `Bridge::is_default` says, and the ports of the host with it. Success when that is so.
    ///
    /// # Errors
    /// What the plugin says. Then it may be half done, and can be done again.
    pub(crate) async fn route(&self, pod: &Pod, bridge: &Bridge) -> anyhow::Result<()> {
        let key = pod.key();
        let before = self.attachments.read(&key)?.record().context("the pod is not attached")?;
        let network = Network::of_bridge(bridge, &self.layout.ipam());
        let after = before.routed(&network, pod, bridge.is_default)?;
        // The ports are on record as long as any of them may be there, for DEL.
        let (command, with) = match bridge.is_default {
            true => {
                self.attachments.write(&after)?;
                ("BERTH_LEAD", &after)
            }
            false => ("BERTH_YIELD", &before),
        };
        let environment = with.environment(None);
        for plugin in &network.list.plugins {
            let conf = exec_config::derive(&network.list, plugin, json!(with.result), Some(with));
            let program = self.plugins.find(plugin).await?;
            self.plugins.run(&program, command, &environment, &conf).await?;
        }
        self.attachments.write(&after)
    }
}
