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
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::{Networks, attachment::Attachment, bridge::Bridge, conf::Network, exec_config};

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
    bridge: Option<Bridge>,
}

impl Networks {
    /// DEL. If it fails it is tried again in the background until it succeeds, and if it hangs it
    /// is not waited for: a pod ends when its processes do.
    pub async fn detach(self: &Arc<Self>, id: &str) {
        // Another call is at it already.
        if !self.pending().insert(id.to_owned()) {
            return;
        }
        let (first_attempt, ended) = oneshot::channel::<()>();
        let deleting = self.clone().retry_delete(id.to_owned(), first_attempt);
        tokio::spawn(deleting.in_current_span());
        // The sender is dropped when the first attempt has ended.
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!(
                sandbox = id,
                "CNI plugins have not detached the pod after {} s; it goes on in the background",
                PATIENCE.as_secs()
            );
        }
    }

    async fn retry_delete(self: Arc<Self>, id: String, first_attempt: oneshot::Sender<()>) {
        let mut first_attempt = Some(first_attempt);
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.delete(&id).await {
            // One warning, so that a plugin that stays broken does not fill the log.
            match first_attempt.take() {
                Some(_) => tracing::warn!(
                    sandbox = id,
                    "detach the pod's network; this is tried again: {error:#}"
                ),
                None => tracing::debug!(sandbox = id, "detach the pod's network: {error:#}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.pending().remove(&id);
        if first_attempt.is_none() {
            tracing::info!(sandbox = id, "the pod's network is detached, after several attempts");
        }
    }

    /// Ends the attachment that an earlier pod with this id may still have: its DEL would take the
    /// network of the new one.
    ///
    /// # Errors
    /// DEL does not succeed.
    pub(super) async fn finish_detach(self: &Arc<Self>, id: &str) -> anyhow::Result<()> {
        let path = self.attachments.path(id);
        let is_attached = || blocking(|| path.try_exists());
        if !is_attached()? {
            return Ok(());
        }
        let detached = async {
            // Returns at once where another call is at it.
            self.detach(id).await;
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
    async fn network_of(&self, id: &str) -> anyhow::Result<Network> {
        let directory = self.layout.sandbox(&SandboxId::from(id.to_owned()));
        let meta = blocking(|| record::read::<OfSandbox>(&directory.join(layout::sandbox::META)))?;
        match meta.record().and_then(|meta| meta.config.bridge) {
            Some(bridge) => Ok(Network::of_bridge(&bridge, &self.layout.ipam())),
            None => self.network().await,
        }
    }

    /// DEL of every plugin, in reverse order. Success when there was nothing to undo; the record is
    /// removed then.
    async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let mut attachment = match self.attachments.read(id)? {
            Found::Absent => return Ok(()),
            Found::Record(attachment) => attachment,
            // A crash before ADD began, or a power loss, which took the namespaces with it. The
            // plugins may still hold an address, and need no more than the id to free it.
            Found::Damaged => Attachment::unknown(&self.network_of(id).await?, id),
        };
        let list = attachment
            .conf_list()
            .map_err(|error| anyhow!("{}: {error}", self.attachments.path(id).display()))?;
        // An empty CNI_NETNS says that the namespace is gone, and asks plugins to clean up what
        // they can (SPEC.md, section 2, "DEL").
        if !attachment.netns.is_empty() && !Path::new(&attachment.netns).exists() {
            attachment.netns = String::new();
        }
        let previous = attachment.result.as_ref().map_or(Value::Null, |result| json!(result));
        // The namespace lives on where the containers of another sandbox have joined it. Then its
        // interface must go, whose address somebody else may get.
        let state = self.layout.sandbox_state(&SandboxId::from(id.to_owned()));
        let is_shared = state.join(layout::sandbox::JOINED).exists();
        let environment = attachment.environment((!is_shared).then_some(NETNS_ENDS));
        for plugin in list.plugins.iter().rev() {
            let program = self.plugins.find(plugin).await?;
            let conf = exec_config::derive(&list, plugin, previous.clone(), Some(&attachment));
            self.plugins.run(&program, "DEL", &environment, &conf).await?;
        }
        // The record last: as long as it is there, a restart tries again.
        step_blocking(steps::detach::FORGET, || {
            self.cache.remove(&attachment)?;
            self.attachments.remove(id)
        })
    }
}
