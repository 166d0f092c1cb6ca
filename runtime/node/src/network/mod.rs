//! The network of pods: CNI plugins, run as the specification says (SPEC.md 1.1.0, sections 2 and
//! 4).
//!
//! An attachment is a file of `Layout::attachments`, named after its pod and written before ADD. As
//! long as it is there a DEL is pending: if the pod has ended and its DEL has failed, DEL is tried
//! again in the background, whatever else becomes of the pod.
//!
//! `prepare`, `attach` and `check` are here, `detach` and `gc` have files of their own.

mod attachment;
mod bridge;
mod cache;
mod capabilities;
mod conf;
mod detach;
mod exec_config;
mod gc;
mod gc_lock;
mod health;
mod key;
mod lead;
mod make_bridge;
mod plugin;
mod template;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_base::{
    blocking::{blocking, spawn_blocking},
    config,
    layout::Layout,
    observe::{step_blocking, steps},
};
use berth_cni::ConfList;
use berth_shim::record::{self, Found};
use futures_util::future::try_join_all;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::RwLockReadGuard;

pub(crate) use self::{attachment::Attachment, capabilities::Pod, key::INTERFACE};
pub use self::{
    attachment::Endpoint,
    bridge::{Bridge, Subnet},
};

use self::{
    attachment::Attachments,
    cache::Cache,
    conf::{Confs, Network},
    exec_config::version,
    gc_lock::GcLock,
    health::Health,
    plugin::{Plugins, name_of},
};

/// How long a CHECK may take: the pod cannot be stopped meanwhile.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the directory of conf lists may take to answer.
const CONF_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Networks {
    layout: Layout,
    attachments: Attachments,
    /// Held while the directory is read.
    confs: Arc<tokio::sync::Mutex<Confs>>,
    plugins: Arc<Plugins>,
    cache: Cache,
    /// The networks that the kubelet assigned to the node's pods (UpdateRuntimeConfig).
    ranges: Mutex<Vec<IpNet>>,
    /// The pods whose DEL is in progress or waits for its next attempt.
    pending: Mutex<HashSet<String>>,
    gc_lock: GcLock,
    health: Arc<Health>,
}

/// A pod whose ADD is about to run.
#[derive(Debug)]
pub struct Pending<'a> {
    attachment: Attachment,
    list: ConfList,
    /// The program of each plugin.
    programs: Vec<PathBuf>,
    /// No GC meanwhile, which would take the pod for one that is gone.
    _guard: RwLockReadGuard<'a, ()>,
}

impl Networks {
    pub fn new(config: &config::Cni, layout: &Layout) -> anyhow::Result<Arc<Self>> {
        // berth-bridge is installed beside berthd, where no other runtime would look for plugins.
        let program = std::env::current_exe().context("find the path of berthd itself")?;
        let mut bin_dirs = config.bin_dirs.clone();
        bin_dirs.extend(program.parent().map(Path::to_owned));
        let timeout = Duration::from_secs(config.timeout_seconds.get());
        let cache = Cache::new(config.cache_dir.clone());
        cache.remove_dangling(&layout.attachments());
        Ok(Arc::new(Self {
            attachments: Attachments::open(layout)?,
            confs: Arc::new(tokio::sync::Mutex::new(Confs::new(config, layout.ipam()))),
            plugins: Arc::new(Plugins::new(bin_dirs, timeout)),
            cache,
            ranges: Mutex::new(read_pod_cidr(layout)?),
            pending: Mutex::default(),
            gc_lock: GcLock::default(),
            health: Arc::default(),
            layout: layout.clone(),
        }))
    }

    /// Sets the networks of the node's pods (UpdateRuntimeConfig): `10.244.3.0/24`, or two of them
    /// with a comma in between. They are kept for the next start of the daemon, because the kubelet
    /// sends them only when it starts itself.
    ///
    /// # Errors
    /// `text` is not a list of networks, or cannot be written.
    pub fn set_pod_cidr(&self, text: &str) -> anyhow::Result<()> {
        let ranges = parse_ranges(text)?;
        let path = self.layout.pod_cidr();
        blocking(|| record::write(&path, &ranges))
            .with_context(|| format!("write {}", path.display()))?;
        *self.ranges.lock().unwrap_or_else(PoisonError::into_inner) = ranges;
        Ok(())
    }

    fn ranges(&self) -> Vec<IpNet> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network that new pods get.
    async fn network(&self) -> anyhow::Result<Network> {
        Ok(self.current(self.ranges()).await?.0)
    }

    /// As `Confs::current`, and given up if the directory does not answer.
    async fn current(
        &self,
        ranges: Vec<IpNet>,
    ) -> anyhow::Result<(Network, Option<anyhow::Error>)> {
        let read = async {
            // One at a time: in a directory that hangs each one would keep a thread.
            let confs = self.confs.clone().lock_owned().await;
            spawn_blocking(move || confs.current(&ranges)).await?
        };
        tokio::time::timeout(CONF_TIMEOUT, read).await.with_context(|| {
            let seconds = CONF_TIMEOUT.as_secs();
            format!("the directory of conf lists has not answered for {seconds} s")
        })?
    }

    /// For the verbose Status: the network, what is wrong with its files, and how many pods wait
    /// for their DEL. The first two keys are those of containerd.
    pub async fn info(&self) -> Value {
        let pending = self.pending_detachments();
        match self.current(self.ranges()).await {
            Ok((network, wrong)) => {
                let load = wrong.map_or_else(|| "OK".to_owned(), |error| format!("{error:#}"));
                json!({
                    "confList": network.list,
                    "lastCNILoadStatus": load,
                    "pendingDetachments": pending,
                })
            }
            Err(error) => {
                json!({ "lastCNILoadStatus": format!("{error:#}"), "pendingDetachments": pending })
            }
        }
    }

    /// Whether pods can have a network: the conf list is valid, its plugins are installed, and they
    /// say so themselves (STATUS).
    ///
    /// # Errors
    /// Why not; or which plugin does not answer, and what was said last.
    pub async fn status(&self) -> anyhow::Result<()> {
        self.health.check(&self.plugins, self.network().await?.list).await
    }

    /// Chooses the network of a pod that is to be attached, and records it: what DEL needs is on
    /// disk before the first plugin runs, so that nothing can be left behind by a crash.
    ///
    /// # Errors
    /// There is no network, or one of its plugins is not installed. Nothing is to be undone then;
    /// later the caller has to detach it, whether or not it has called `attach`.
    pub async fn prepare(self: &Arc<Self>, pod: &Pod) -> anyhow::Result<Pending<'_>> {
        let key = pod.key();
        self.finish_detach(&key).await?;
        let guard = self.gc_lock.for_add().await;
        let ranges = self.ranges();
        let (network, wrong) = match &pod.bridge {
            Some(bridge) => (Network::of_bridge(bridge, &self.layout.ipam()), None),
            None => self.current(ranges.clone()).await?,
        };
        if let Some(error) = wrong {
            tracing::warn!(
                network = network.list.name,
                "the conf list cannot be used; pods get the previous network: {error:#}"
            );
        }
        let attachment = Attachment::new(&network, pod, pod.capabilities(&ranges)?);
        let list = network.list;
        let programs =
            try_join_all(list.plugins.iter().map(|plugin| self.plugins.find(plugin))).await?;
        step_blocking(steps::attach::RECORD, || self.attachments.write(&attachment))?;
        self.cache.add(&attachment, &self.attachments.path(&key));
        Ok(Pending { attachment, list, programs, _guard: guard })
    }

    /// ADD of every plugin in turn.
    ///
    /// # Errors
    /// What the plugin that failed said, with its name. The caller has to detach it.
    pub async fn attach(&self, pending: Pending<'_>) -> anyhow::Result<Attachment> {
        let Pending { mut attachment, list, programs, _guard } = pending;
        let environment = attachment.environment(None);
        // Each plugin sees the result of the one before it, and adds to it.
        let mut previous = Value::Null;
        for (plugin, program) in list.plugins.iter().zip(programs) {
            let conf = exec_config::derive(&list, plugin, previous, Some(&attachment));
            let output = self.plugins.run(&program, "ADD", &environment, &conf).await?;
            previous = serde_json::from_slice(&output)
                .with_context(|| format!("result of CNI plugin {}", name_of(plugin)))?;
        }
        attachment.result =
            Some(serde_json::from_value(previous).context("result of the last CNI plugin")?);
        if attachment.addresses().is_empty() {
            // The kubelet takes such a pod for one that has lost its network, and makes it anew
            // again and again.
            bail!("the plugins of network {:?} gave the pod no address", list.name);
        }
        step_blocking(steps::attach::RESULT, || self.attachments.write(&attachment))?;
        Ok(attachment)
    }

    /// CHECK of every plugin: whether the network of a pod is still what ADD made. Success for
    /// plugins from before CHECK, and where the conf list turns it off.
    ///
    /// # Errors
    /// What the plugin that failed said, with its name; or that CHECK takes too long.
    pub async fn check(&self, id: &str) -> anyhow::Result<()> {
        tokio::time::timeout(CHECK_TIMEOUT, self.run_checks(id))
            .await
            .with_context(|| format!("CHECK took longer than {} s", CHECK_TIMEOUT.as_secs()))?
    }

    async fn run_checks(&self, id: &str) -> anyhow::Result<()> {
        let Some(attachment) = self.attachments.read(id)?.record() else { return Ok(()) };
        let list = attachment
            .conf_list()
            .map_err(|error| anyhow!("{}: {error}", self.attachments.path(id).display()))?;
        // CHECK came with CNI 0.4.0.
        if list.disable_check || version(&list) < [0, 4, 0] {
            return Ok(());
        }
        // Without a result the ADD has not ended.
        let Some(result) = attachment.result.as_ref() else { return Ok(()) };
        for plugin in &list.plugins {
            let program = self.plugins.find(plugin).await?;
            let conf = exec_config::derive(&list, plugin, json!(result), Some(&attachment));
            self.plugins.run(&program, "CHECK", &attachment.environment(None), &conf).await?;
        }
        Ok(())
    }

    /// What the plugins answered to a pod's ADD; `None` if there was none, or if its record is
    /// damaged.
    pub fn attachment(
        layout: &Layout,
        id: &str,
        interface: &str,
    ) -> anyhow::Result<Option<Attachment>> {
        let path = layout.attachment(&key::key(id, interface));
        Ok(blocking(|| record::read::<Attachment>(&path))?.record())
    }
}

/// The networks that the kubelet assigned while an earlier daemon ran.
fn read_pod_cidr(layout: &Layout) -> anyhow::Result<Vec<IpNet>> {
    let path = layout.pod_cidr();
    match blocking(|| record::read(&path)).with_context(|| format!("read {}", path.display()))? {
        Found::Record(ranges) => Ok(ranges),
        Found::Absent => Ok(Vec::new()),
        Found::Damaged => {
            tracing::warn!(
                "{} is damaged: the network of the pods is not known until the kubelet restarts",
                path.display()
            );
            Ok(Vec::new())
        }
    }
}

fn parse_ranges(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let range = part.parse().with_context(|| format!("pod_cidr: {part:?} is not a network"))?;
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_networks_are_one_or_two() {
        let texts = |text: &str| {
            parse_ranges(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(texts("10.1.0.0/24,fd00::/64").unwrap(), ["10.1.0.0/24", "fd00::/64"]);
        assert!(texts("").unwrap().is_empty());
        assert!(texts("10.1.0.0").unwrap_err().to_string().contains("not a network"));
    }
}
