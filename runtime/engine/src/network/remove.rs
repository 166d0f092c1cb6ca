//! The end of a network.

use std::sync::Arc;

use berth_base::observe::{self, steps::docker_network};
use http::StatusCode;
use serde_json::Map;

use super::{Network, object::Wish};
use crate::{
    engine::Engine,
    http::error::{Failure, Result},
};

impl Engine {
    /// Removes a network with its bridge. Success means that nothing of it is left.
    ///
    /// # Errors
    /// 403 for one that every engine has, or that containers are on.
    pub(crate) async fn remove_network(&self, network: &Arc<Network>) -> Result<()> {
        if !network.is_custom() {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                format!("{} is a pre-defined network and cannot be removed", network.name),
            ));
        }
        let _changing = self.networks.changing.lock().await;
        // A container may come to it at this moment.
        if !self.members(network).is_empty() || !self.networks.close(network) {
            return Err(self.in_use(network));
        }
        // One may have come before it was closed.
        if !self.members(network).is_empty() {
            self.networks.reopen(network.clone());
            return Err(self.in_use(network));
        }
        let removed = async {
            observe::before(docker_network::UNBRIDGE)?;
            self.node.host.networks.remove_bridge(&network.bridge(Wish::default())).await?;
            observe::before(docker_network::FORGET)?;
            // The record last: until then a second attempt finds the rest.
            self.networks.forget(network)
        };
        if let Err(error) = removed.await {
            self.networks.reopen(network.clone());
            return Err(error.into());
        }
        self.publish_of_network(network, "destroy", Map::new());
        Ok(())
    }

    fn in_use(&self, network: &Network) -> Failure {
        let members = self.members(network).into_iter();
        let members: Vec<String> = members
            .map(|member| format!("name:{:?} id:{:?}", member.name, &member.endpoint_id[..12]))
            .collect();
        Failure::new(
            StatusCode::FORBIDDEN,
            format!(
                "error while removing network: network {} has active endpoints ({})",
                network.name,
                members.join(" ")
            ),
        )
    }
}
