//! Freeing what plugins hold for pods that are gone: by the DEL that is pending, and by GC, at
//! start-up and every hour.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use berth_cni::ConfList;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{
    Networks,
    conf::Untold,
    exec_config::{self, is_1_1},
    key,
};

/// The pause after an attempt that failed or gave way; it doubles with each one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, and that after a success.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

enum Sweep {
    Done,
    /// Pods were being attached.
    GaveWay,
}

impl Networks {
    /// DEL for the pods that are not among `living`, then GC for as long as the daemon runs.
    ///
    /// # Errors
    /// The pods, or their attachments, cannot be listed.
    pub async fn collect(
        self: &Arc<Self>,
        living: impl FnOnce() -> anyhow::Result<BTreeSet<String>>,
    ) -> anyhow::Result<()> {
        // In this order: a pod has a directory before it has an attachment, so a pod that is being
        // made right now is among the living by the time they are asked for.
        let attached = self.attachments.keys()?;
        let living = living()?;
        let leaves = |key: &str| {
            self.attachments.read(key).is_ok_and(|it| it.record().is_some_and(|it| it.leaves))
        };
        let orphans = attached
            .iter()
            .filter(|key| !living.contains(key::parts(key).0) || leaves(key.as_str()));
        join_all(orphans.map(|key| self.detach(key))).await;
        let mut pause = FIRST_PAUSE;
        loop {
            pause = match self.sweep().await {
                Ok(Sweep::Done) => LONGEST_PAUSE,
                Ok(Sweep::GaveWay) => pause,
                // Nothing is wrong: no pod has had a network, and Status says for what it waits.
                Err(error) if error.is::<Untold>() => pause,
                Err(error) => {
                    tracing::warn!("garbage collection of pod networks: {error:#}");
                    pause
                }
            };
            tokio::time::sleep(pause).await;
            pause = match pause {
                LONGEST_PAUSE => FIRST_PAUSE,
                pause => (pause * 2).min(LONGEST_PAUSE),
            };
        }
    }

    /// GC of every plugin, where the conf list has it.
    async fn sweep(&self) -> anyhow::Result<Sweep> {
        let mut lists = self.attached_lists()?;
        // Also without any pods, whose leftovers are to be found.
        let list = self.network().await?.list;
        lists.insert(list.name.clone(), list);
        lists.retain(|_, list| !list.disable_gc && is_1_1(list));
        if lists.is_empty() {
            return Ok(Sweep::Done);
        }
        let Some(_guard) = self.gc_lock.try_for_gc() else { return Ok(Sweep::GaveWay) };
        let collecting = async {
            for list in lists.values() {
                self.run_gc(list).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            swept = collecting => swept.map(|()| Sweep::Done),
            // Dropping the run kills its plugin, which may have freed a part of what it found.
            () = self.gc_lock.overdue() => Ok(Sweep::GaveWay),
        }
    }

    /// The networks that something is attached to, by name.
    fn attached_lists(&self) -> anyhow::Result<BTreeMap<String, ConfList>> {
        let mut lists = BTreeMap::new();
        for key in self.attachments.keys()? {
            let attachment = self.attachments.read(&key)?.record();
            let list = attachment.and_then(|attachment| attachment.conf_list().ok());
            lists.extend(list.map(|list| (list.name.clone(), list)));
        }
        Ok(lists)
    }

    async fn run_gc(&self, list: &ConfList) -> anyhow::Result<()> {
        // Without those whose DEL is pending: GC frees the same.
        let pending = self.pending().clone();
        let mut valid = Vec::new();
        for key in self.attachments.keys()? {
            if !pending.contains(&key) {
                let (id, interface) = key::parts(&key);
                valid.push(berth_cni::Attachment {
                    container_id: id.to_owned(),
                    ifname: interface.to_owned(),
                });
            }
        }
        for plugin in &list.plugins {
            let mut conf = exec_config::derive(list, plugin, Value::Null, None);
            // libcni sends both names: the specification had the second one by mistake.
            conf.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            conf.insert("cni.dev/attachments".to_owned(), json!(valid));
            let program = self.plugins.find(plugin).await?;
            self.plugins.run(&program, "GC", &[], &conf).await?;
        }
        Ok(())
    }
}
