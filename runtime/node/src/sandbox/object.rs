//! A sandbox as the daemon holds it in memory.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    clock::now,
    error::Result,
    id::SandboxId,
    layout::{self, Layout},
};
use berth_shim::record::{self, Found};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    config::{Config, Meta, Origin, interfaces},
    pause,
};
use crate::{
    cgroup::{Resources, Sampler},
    host::Host,
    network::{Attachment, Bridge, Endpoint, INTERFACE, Networks},
    security::selinux,
    shim,
};

/// `ready.json`, written last: a sandbox without it was never complete.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// The boot in which it was made ready. Its namespaces went with that boot.
    pub boot_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    NotReady,
}

/// What readers see.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    state: State,
    pub addresses: Vec<IpAddr>,
    /// The bridges in force; those of `meta` until one comes or goes.
    pub bridges: Vec<Bridge>,
    /// Its interfaces on them.
    pub endpoints: Vec<Endpoint>,
    /// The sizes in force; those of `meta` until the first update.
    sizes: Sizes,
}

/// What a pod may use, as the kubelet says. The kubelet sets the limits of the pod's cgroup itself;
/// berth records them for the verbose status.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    /// For the pod besides its containers.
    pub overhead: Option<Resources>,
    /// For all its containers together.
    pub resources: Option<Resources>,
}

#[derive(Debug)]
pub struct Sandbox {
    pub meta: Meta,
    snapshot: Mutex<Snapshot>,
    /// Held by whichever verb changes the sandbox: update, stop, remove, or the creation of a
    /// container in it. The CNI specification, too, allows one operation on a pod at a time.
    pub busy: tokio::sync::Mutex<()>,
    /// Remembers the CPU time of the last sample, of the whole pod.
    pub sampler: Mutex<Sampler>,
    /// Keeps other pods from getting the same SELinux level, until this one is dropped.
    _level: Option<selinux::Level>,
}

impl Sandbox {
    pub(super) fn new(host: &Host, meta: Meta, state: State, attachments: &[Attachment]) -> Self {
        let addresses = attachments.iter().flat_map(Attachment::addresses).collect();
        let bridges = meta.config.bridges.clone();
        let on_bridges = attachments.iter().filter(|_| !bridges.is_empty());
        let endpoints = on_bridges.filter_map(Attachment::endpoint).collect();
        let sizes = Sizes {
            overhead: meta.config.overhead.clone(),
            resources: meta.config.resources.clone(),
        };
        let level = meta.labels.as_ref().map(|labels| host.selinux.keep(labels));
        Self {
            meta,
            snapshot: Mutex::new(Snapshot { state, addresses, bridges, endpoints, sizes }),
            busy: tokio::sync::Mutex::default(),
            sampler: Mutex::default(),
            _level: level,
        }
    }

    /// UpdatePodSandboxResources: the kubelet has changed the pod's cgroup, and this is what the
    /// status shows from now on.
    pub async fn update(&self, layout: &Layout, changed: Sizes) -> Result<()> {
        let _busy = self.busy.lock().await;
        let before = self.sizes();
        let after = Sizes {
            overhead: changed.overhead.or(before.overhead),
            resources: changed.resources.or(before.resources),
        };
        // The disk first: what the status shows after a restart must not be older than what it
        // showed before.
        self.write(layout, &after, &self.bridges())?;
        self.snapshot().sizes = after;
        Ok(())
    }

    /// Writes its record with what was changed since it was made.
    pub(super) fn write(
        &self,
        layout: &Layout,
        sizes: &Sizes,
        bridges: &[Bridge],
    ) -> anyhow::Result<()> {
        let mut meta = self.meta.clone();
        meta.config.overhead = sizes.overhead.clone();
        meta.config.resources = sizes.resources.clone();
        meta.config.bridges = bridges.to_vec();
        let path = layout.sandbox(&self.meta.id).join(layout::sandbox::META);
        blocking(|| record::write(&path, &meta))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The bridges that it is to be attached to.
    pub fn bridges(&self) -> Vec<Bridge> {
        self.snapshot().bridges.clone()
    }

    pub fn sizes(&self) -> Sizes {
        self.snapshot().sizes.clone()
    }

    /// Reads a sandbox back from disk. `None` if it was never ready: then the caller removes what
    /// there is.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn load(host: &Host, id: &SandboxId) -> anyhow::Result<Option<Self>> {
        let Some((meta, state)) = read_state(&host.layout, id, &host.boot_id)? else {
            return Ok(None);
        };
        let mut attachments = Vec::new();
        for interface in interfaces(&meta.config.bridges) {
            let attachment = Networks::attachment(&host.layout, id.as_str(), &interface)?;
            if attachment.is_none() && state == State::Ready && !meta.pods().is_empty() {
                tracing::error!(
                    sandbox = %id,
                    interface,
                    "the record of its network in {} is missing or damaged: the pod runs on, but \
                     its addresses are not known, and it should be removed (`crictl rmp -f {id}`)",
                    host.layout.attachments().display()
                );
            }
            attachments.extend(attachment);
        }
        Ok(Some(Self::new(host, meta, state, &attachments)))
    }

    /// A stand-in for a sandbox that was never ready and could not be removed. It is listed, so
    /// that the kubelet stops and removes it. `None` if it has no record, and so nothing was made.
    pub fn incomplete(host: &Host, id: &SandboxId) -> Option<Self> {
        let path = host.layout.sandbox(id).join(layout::sandbox::META);
        let meta = blocking(|| record::read::<Meta>(&path)).ok()?.record()?;
        Some(Self::new(host, meta, State::NotReady, &[]))
    }

    /// A stand-in for a sandbox whose records are damaged. It is listed, so that it can be stopped
    /// and removed by what its other records say.
    pub fn damaged(host: &Host, id: &SandboxId) -> Self {
        Self::incomplete(host, id)
            .unwrap_or_else(|| Self::new(host, without_record(host, id), State::NotReady, &[]))
    }

    /// Returns when the pod has become unusable by itself. That happens only to one whose
    /// containers share a PID namespace, when the process that holds the namespace ends.
    pub async fn broken(&self, host: &Host) {
        match pause::is_needed(&self.meta) && self.state() == State::Ready {
            true => pause::ended(host, &self.meta.id).await,
            false => std::future::pending().await,
        }
    }

    /// Makes it not ready, and runs `publish` if it was ready until now. Nobody sees that it is not
    /// ready before its end is published, so that what follows is published later.
    pub fn end(&self, publish: impl FnOnce()) {
        let mut snapshot = self.snapshot();
        if std::mem::replace(&mut snapshot.state, State::NotReady) == State::Ready {
            publish();
        }
    }

    pub(super) fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.snapshot().state
    }

    /// The addresses of the pod's interface, the primary one first. They are kept after the pod has
    /// stopped, because the kubelet still reads them then.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.snapshot().addresses.clone()
    }

    /// Its interfaces on bridges; with `Config::bridges` only.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.snapshot().endpoints.clone()
    }

    /// For the verbose status: whether the CNI plugins still find what they set up (CHECK).
    pub async fn check_network(&self, host: &Host) -> anyhow::Result<&'static str> {
        // The CNI specification forbids two operations on one container at the same time. A status
        // waits for no writer, so it does without the check then.
        let Ok(_busy) = self.busy.try_lock() else {
            return Ok("not checked: the pod is being changed at the moment");
        };
        if self.state() != State::Ready || self.meta.pods().is_empty() {
            return Ok("not checked: the pod is not ready, or has no network of its own");
        }
        host.networks.check(self.meta.id.as_str()).await.map(|()| "OK")
    }

    /// For the verbose status: the result of the CNI plugins (ADD). Reads the disk.
    pub fn cni_result(&self, layout: &Layout) -> serde_json::Value {
        let attachment = Networks::attachment(layout, self.meta.id.as_str(), INTERFACE);
        json!(attachment.ok().flatten().and_then(|attachment| attachment.result))
    }
}

/// A record in place of one that is lost. The network namespace is known from the attachment, so
/// that a removal can run DEL and unpin it.
pub(super) fn without_record(host: &Host, id: &SandboxId) -> Meta {
    let attachment = Networks::attachment(&host.layout, id.as_str(), INTERFACE).ok().flatten();
    let netns = attachment.and_then(|attachment| {
        let name = Path::new(&attachment.netns).file_name()?;
        Some(name.to_string_lossy().into_owned())
    });
    let origin = Origin::of_unrecorded(&host.layout, id.as_str());
    let config = Config { origin, name: format!("damaged-{id}"), ..Config::default() };
    Meta {
        id: id.clone(),
        created_at: now(),
        config,
        netns,
        pause_cgroup: None,
        labels: None,
        joined_netns: None,
    }
}

/// What a sandbox's directory says: `None` if it was never ready.
///
/// # Errors
/// It cannot be read.
pub fn read_state(
    layout: &Layout,
    id: &SandboxId,
    boot_id: &str,
) -> anyhow::Result<Option<(Meta, State)>> {
    let directory = layout.sandbox(id);
    let Found::Record(meta) = record::read::<Meta>(&directory.join(layout::sandbox::META))? else {
        return Ok(None);
    };
    // A stop is recorded before its first step, and nothing makes a sandbox ready again.
    let stopped = is_stopped(layout, id);
    // A node that is itself a container, as kind's nodes are, may start anew within one boot of the
    // kernel. Then the namespaces are gone with the state directory.
    let pins = layout.sandbox_state(id);
    let has_pins = pins.try_exists().with_context(|| format!("look for {}", pins.display()))?;
    let state = match record::read::<Ready>(&directory.join(layout::sandbox::READY))? {
        Found::Record(ready) if ready.boot_id == boot_id && has_pins && !stopped => State::Ready,
        // It was stopped, or its namespaces went with an earlier boot. The kubelet has to stop and
        // remove it.
        Found::Record(_) => State::NotReady,
        _ if stopped => State::NotReady,
        // RunPodSandbox did not come to its end.
        _ => return Ok(None),
    };
    // When the first process of a PID namespace ends, the kernel kills all others in it, and no
    // process can be started there any more (pid_namespaces(7)).
    let is_broken =
        pause::is_needed(&meta) && !shim::is_alive(&directory.join(layout::sandbox::PAUSE))?;
    Ok(Some((meta, if is_broken { State::NotReady } else { state })))
}

/// The ids of the sandboxes that keep their attachment to the network: those that were made and not
/// stopped. The attachments of all others are to be deleted.
///
/// # Errors
/// The directory cannot be read; to guess would take the network from pods that live.
pub fn attached(layout: &Layout) -> anyhow::Result<BTreeSet<String>> {
    let directory = layout.sandboxes();
    let entries =
        fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut attached = BTreeSet::new();
    for entry in entries.flatten() {
        let id = SandboxId::from(entry.file_name().to_string_lossy().into_owned());
        let is_made = entry.path().join(layout::sandbox::META).exists();
        if is_made && !is_stopped(layout, &id) {
            attached.insert(id.to_string());
        }
    }
    Ok(attached)
}

/// Whether it was stopped: its marker is with its records, or in the state directory if the disk
/// took none.
fn is_stopped(layout: &Layout, id: &SandboxId) -> bool {
    let markers = [layout.sandbox(id).join(layout::sandbox::STOPPED), layout.stopped(id)];
    markers.iter().any(|marker| marker.symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_builds_are_read() {
        berth_contract::check::<Ready>("ready.json");
    }
}
