//! Bridges that a sandbox comes to, and leaves, while it runs.

use std::net::IpAddr;

use anyhow::Context;
use berth_base::{
    error::{Error, Result},
    observe::{step_blocking, steps},
};

use super::object::{Sandbox, State};
use crate::{
    host::Host,
    network::{Bridge, Endpoint},
};

impl Sandbox {
    /// Attaches it to one more bridge while it runs. Nothing is left of it after an error.
    ///
    /// # Errors
    /// It is not ready, or what the plugin says.
    pub async fn connect(&self, host: &Host, bridge: Bridge) -> Result<Endpoint> {
        let _busy = self.busy.lock().await;
        let pod = self.meta.pod(Some(&bridge)).filter(|_| self.state() == State::Ready);
        let pod = pod.ok_or_else(|| Error::precondition("the sandbox is not ready"))?;
        let before = self.bridges();
        // The record first: what ends the sandbox after a crash finds the interface by it.
        let after = [before.as_slice(), std::slice::from_ref(&bridge)].concat();
        step_blocking(steps::connect_sandbox::RECORD, || self.note(host, &after))?;
        let attached = async {
            let pending = host.networks.prepare(&pod).await?;
            let attachment = host.networks.attach(pending).await?;
            let endpoint = attachment.endpoint().context("the plugin gave no address")?;
            anyhow::Ok((attachment.addresses(), endpoint))
        };
        match attached.await {
            Ok((addresses, endpoint)) => {
                let mut snapshot = self.snapshot();
                snapshot.bridges = after;
                snapshot.addresses.extend(addresses);
                snapshot.endpoints.push(endpoint.clone());
                Ok(endpoint)
            }
            Err(error) => {
                // What the undoing cannot do now, the end of the sandbox does.
                let left = host.networks.leave(self.meta.id.as_str(), &bridge.inside).await;
                if let Err(undoing) = left.and_then(|()| self.note(host, &before)) {
                    let id = &self.meta.id;
                    tracing::warn!(sandbox = %id, "left of a bridge: {undoing:#}");
                }
                Err(error.into())
            }
        }
    }

    /// Takes it from a bridge while it runs. Success if it is on no such bridge.
    ///
    /// # Errors
    /// The disk takes no note of it.
    pub async fn disconnect(&self, host: &Host, network: &str) -> Result<()> {
        let _busy = self.busy.lock().await;
        let (leaving, staying): (Vec<Bridge>, Vec<Bridge>) =
            self.bridges().into_iter().partition(|bridge| bridge.network == network);
        for bridge in &leaving {
            host.networks.leave(self.meta.id.as_str(), &bridge.inside).await?;
        }
        step_blocking(steps::disconnect_sandbox::RECORD, || self.note(host, &staying))?;
        let mut snapshot = self.snapshot();
        snapshot.bridges = staying;
        let left = |endpoint: &Endpoint| endpoint.network == network;
        let addresses = |it: &Endpoint| [it.ipv4, it.ipv6].into_iter().flatten();
        let left_by = snapshot.endpoints.iter().filter(|it| left(it));
        let gone: Vec<IpAddr> =
            left_by.flat_map(addresses).map(|(address, _)| address.addr()).collect();
        snapshot.endpoints.retain(|endpoint| !left(endpoint));
        snapshot.addresses.retain(|address| !gone.contains(address));
        Ok(())
    }

    /// Lets its default route, and the ports of the host, lead to one of its bridges in the place of
    /// the one before, while it runs; `None` for to none of them.
    ///
    /// # Errors
    /// It is not ready, it is on no such bridge, or what the plugin says: a port may be another's by
    /// now. Then they lead nowhere, and this can be called again.
    pub async fn lead(&self, host: &Host, network: Option<&str>) -> Result<()> {
        let _busy = self.busy.lock().await;
        let mut bridges = self.bridges();
        let before = bridges.iter().find(|bridge| bridge.is_default);
        if before.map(|bridge| bridge.network.as_str()) == network {
            return Ok(());
        }
        if self.state() != State::Ready {
            return Err(Error::precondition("the sandbox is not ready"));
        }
        // On record as leading nowhere meanwhile: after a crash all of it is done again.
        for bridge in &mut bridges {
            bridge.is_default = false;
        }
        step_blocking(steps::lead_sandbox::BEGUN, || self.note(host, &bridges))?;
        self.snapshot().bridges.clone_from(&bridges);
        let leads = |bridge: &Bridge| Some(bridge.network.as_str()) == network;
        // The kernel keeps one default route, so that the others go first.
        for is_default in [false, true] {
            for bridge in bridges.iter_mut().filter(|bridge| leads(bridge) == is_default) {
                bridge.is_default = is_default;
                let pod = self.meta.pod(Some(bridge)).context("the sandbox has no network")?;
                host.networks.route(&pod, bridge).await?;
            }
        }
        step_blocking(steps::lead_sandbox::DONE, || self.note(host, &bridges))?;
        self.snapshot().bridges = bridges;
        Ok(())
    }

    /// Writes its record with these bridges.
    fn note(&self, host: &Host, bridges: &[Bridge]) -> anyhow::Result<()> {
        self.write(&host.layout, &self.sizes(), bridges)
    }
}
