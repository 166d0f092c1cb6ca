//! DEL: the end of a pod's attachment, tried until it succeeds.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow};
use berth_base::{
    blocking::blocking,
    id::SandboxId,
    layout,
    observe::{step_blocking, steps},
};
use berth_shim::record::{self, Found};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::{Networks, attachment::Attachment, bridge::Bridge, conf::Network, exec_config, key};

/// How long the end of a pod waits for the first attempt.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a DEL that runs already is looked at.
const DETACHING: Duration = Duration::from_millis(10);
/// The pause after the first attempt; it doubles with each one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Tells berth-bridge that the network namespace goes next: it leaves the interfaces in it to the
/// kernel. IgnoreUnknown makes other plugins ignore it.
const NETNS_ENDS: &str = "BERTH_NETNS_ENDS=1";

/// What a sandbox's record says of its network. The whole record is none of this module's business.
#[derive(Deserialize)]
struct OfSandbox {
    config: OfConfig,
}

#[derive(Deserialize)]
struct OfConfig {
    #[serde(default)]
    bridges: Vec<Bridge>,
}

impl Networks {
    /// Detaches a pod that ends from all its networks, as `detach` does.
    pub async fn detach_all(self: &Arc<Self>, id: &str, interfaces: &[String]) {
        let keys: Vec<String> =
            interfaces.iter().map(|interface| key::key(id, interface)).collect();
        join_all(keys.iter().map(|key| self.detach(key))).await;
    }

    /// The interfaces by which a pod is attached whose own record says nothing.
    pub fn interfaces(&self, id: &str) -> Vec<String> {
        let keys = self.attachments.keys().unwrap_or_default();
        let own = keys.iter().map(|key| key::parts(key)).filter(|(pod, _)| *pod == id);
        own.map(|(_, interface)| interface.to_owned()).collect()
    }

    /// Detaches a pod that goes on from one of its networks, as `detach` does.
    ///
    /// # Errors
    /// The disk takes no note of it: then nothing has begun.
    pub async fn leave(self: &Arc<Self>, id: &str, interface: &str) -> anyhow::Result<()> {
        let key = key::key(id, interface);
        if let Found::Record(mut attachment) = self.attachments.read(&key)? {
            attachment.leaves = true;
            self.attachments.write(&attachment)?;
        }
        self.detach(&key).await;
        Ok(())
    }

    /// DEL. If it fails it is tried again in the background until it succeeds, and if it hangs it
    /// is not waited for: a pod ends when its processes do.
    pub(super) async fn detach(self: &Arc<Self>, key: &str) {
        // Another call is at it already.
        if !self.pending().insert(key.to_owned()) {
            return;
        }
        let (first_attempt, ended) = oneshot::channel::<()>();
        let deleting = self.clone().retry_delete(key.to_owned(), first_attempt);
        tokio::spawn(deleting.in_current_span());
        // The sender is dropped when the first attempt has ended.
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!(
                sandbox = key,
                "CNI plugins have not detached the pod after {} s; it goes on in the background",
                PATIENCE.as_secs()
            );
        }
    }

    async fn retry_delete(self: Arc<Self>, key: String, first_attempt: oneshot::Sender<()>) {
        let mut first_attempt = Some(first_attempt);
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.delete(&key).await {
            // One warning, so that a plugin that stays broken does not fill the log.
            match first_attempt.take() {
                Some(_) => tracing::warn!(
                    sandbox = key,
                    "detach the pod's network; this is tried again: {error:#}"
                ),
                None => tracing::debug!(sandbox = key, "detach the pod's network: {error:#}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.pending().remove(&key);
        if first_attempt.is_none() {
            tracing::info!(sandbox = key, "the pod's network is detached, after several attempts");
        }
    }

    /// Ends the attachment that an earlier pod with this id may still have: its DEL would take the
    /// network of the new one.
    ///
    /// # Errors
    /// DEL does not succeed.
    pub(super) async fn finish_detach(self: &Arc<Self>, key: &str) -> anyhow::Result<()> {
        let path = self.attachments.path(key);
        let is_attached = || blocking(|| path.try_exists());
        if !is_attached()? {
            return Ok(());
        }
        let detached = async {
            // Returns at once where another call is at it.
            self.detach(key).await;
            while is_attached()? {
                tokio::time::sleep(DETACHING).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, detached)
            .await
            .context("an earlier pod with this id is still attached to its network")?
    }

    /// How many pods wait for a DEL that succeeds.
    pub fn pending_detachments(&self) -> usize {
        self.pending().len()
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network of a pod whose attachment is damaged.
    async fn network_of(&self, key: &str) -> anyhow::Result<Network> {
        let (id, interface) = key::parts(key);
        let directory = self.layout.sandbox(&SandboxId::from(id.to_owned()));
        let meta = blocking(|| record::read::<OfSandbox>(&directory.join(layout::sandbox::META)))?;
        let bridges = meta.record().map(|meta| meta.config.bridges).unwrap_or_default();
        match bridges.into_iter().find(|bridge| bridge.inside == interface) {
            Some(bridge) => Ok(Network::of_bridge(&bridge, &self.layout.ipam())),
            None => self.network().await,
        }
    }

    /// DEL of every plugin, in reverse order. Success when there was nothing to undo; the record is
    /// removed then.
    async fn delete(&self, key: &str) -> anyhow::Result<()> {
        let mut attachment = match self.attachments.read(key)? {
            Found::Absent => return Ok(()),
            Found::Record(attachment) => attachment,
            // A crash before ADD began, or a power loss, which took the namespaces with it. The
            // plugins may still hold an address, and need no more than the id to free it.
            Found::Damaged => Attachment::unknown(&self.network_of(key).await?, key),
        };
        let list = attachment
            .conf_list()
            .map_err(|error| anyhow!("{}: {error}", self.attachments.path(key).display()))?;
        // An empty CNI_NETNS says that the namespace is gone, and asks plugins to clean up what
        // they can (SPEC.md, section 2, "DEL").
        if !attachment.netns.is_empty() && !Path::new(&attachment.netns).exists() {
            attachment.netns = String::new();
        }
        let previous = attachment.result.as_ref().map_or(Value::Null, |result| json!(result));
        // The namespace lives on where the containers of another sandbox have joined it. Then its
        // interface must go, whose address somebody else may get.
        let state = self.layout.sandbox_state(&SandboxId::from(attachment.container_id.clone()));
        let is_shared = state.join(layout::sandbox::JOINED).exists();
        let stays = is_shared || attachment.leaves;
        let environment = attachment.environment((!stays).then_some(NETNS_ENDS));
        for plugin in list.plugins.iter().rev() {
            let program = self.plugins.find(plugin).await?;
            let conf = exec_config::derive(&list, plugin, previous.clone(), Some(&attachment));
            self.plugins.run(&program, "DEL", &environment, &conf).await?;
        }
        // The record last: as long as it is there, a restart tries again.
        step_blocking(steps::detach::FORGET, || {
            self.cache.remove(&attachment)?;
            self.attachments.remove(key)
        })
    }
}
