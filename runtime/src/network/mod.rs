//! The pod network: plugins run as the CNI specification says (SPEC.md 1.1.0, sections 2 and 4).
//!
//! An attachment is a file of `Layout::attachments`, named by its pod and written before ADD. As long as it is there a DEL is owed:
//! where the pod ended and DEL failed, it is tried again in the background, whatever else becomes of the pod.

mod attachment;
mod capabilities;
mod conf;
mod plugin;
mod template;

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_cni::ConfList;
use berth_shim::record::{self, Found};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::{RwLock, oneshot};

pub(crate) use self::{attachment::Attachment, capabilities::Pod};
use self::{
    conf::{Confs, Network},
    plugin::{Conf, Plugins, name_of},
};
use crate::{config, layout::Layout};

/// The interface of the pod that Kubernetes looks at.
const INTERFACE: &str = "eth0";
/// How long the end of a pod waits for plugins.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between the attempts of a DEL, doubling from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

#[derive(Debug)]
pub(crate) struct Networks {
    layout: Layout,
    confs: Confs,
    plugins: Plugins,
    /// Where other tools look for results.
    cache: PathBuf,
    /// The pods' networks, as the kubelet told them.
    ranges: Mutex<Vec<IpNet>>,
    /// Pods whose DEL is under way, or is tried again in the background.
    owed: Mutex<HashSet<String>>,
    /// Shared by ADD and DEL, taken alone by GC.
    collecting: RwLock<()>,
}

impl Networks {
    pub(crate) fn new(config: &config::Cni, layout: &Layout) -> anyhow::Result<Arc<Self>> {
        let own = std::env::current_exe().context("find own executable")?;
        let bin_dirs = config.bin_dirs.iter().cloned().chain(own.parent().map(Path::to_owned)).collect();
        fs::create_dir_all(layout.attachments()).with_context(|| format!("make {}", layout.attachments().display()))?;
        let ranges = match record::read(&layout.pod_cidr()).context("read the pods' network")? {
            Found::Record(ranges) => ranges,
            Found::Absent => Vec::new(),
            Found::Damaged => {
                tracing::warn!("{}: damaged; the kubelet tells it again when it starts", layout.pod_cidr().display());
                Vec::new()
            }
        };
        let networks = Arc::new(Self {
            confs: Confs::new(config, layout.ipam()),
            plugins: Plugins::new(bin_dirs, Duration::from_secs(config.timeout_seconds.get())),
            cache: config.cache_dir.clone(),
            ranges: Mutex::new(ranges),
            owed: Mutex::default(),
            collecting: RwLock::new(()),
            layout: layout.clone(),
        });
        networks.sweep_cache();
        Ok(networks)
    }

    /// The pods' networks from now on: `10.244.3.0/24`, or with one of IPv6 behind a comma. Kept for the next start, because the kubelet
    /// tells it only once.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub(crate) fn set_pod_cidr(&self, text: &str) -> anyhow::Result<()> {
        let ranges = parse_ranges(text)?;
        let path = self.layout.pod_cidr();
        record::write(&path, &ranges).with_context(|| format!("write {}", path.display()))?;
        *self.ranges.lock().unwrap_or_else(PoisonError::into_inner) = ranges;
        Ok(())
    }

    fn ranges(&self) -> Vec<IpNet> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network that pods get.
    fn network(&self) -> anyhow::Result<Network> {
        Ok(self.confs.current(&self.ranges())?.0)
    }

    /// For the verbose status: the network, what is wrong with the files, and how many pods still wait for their DEL.
    pub(crate) fn info(&self) -> Value {
        let owed = self.owed_detachments();
        match self.confs.current(&self.ranges()) {
            Ok((network, wrong)) => json!({
                "confList": network.list,
                "lastCNILoadStatus": wrong.map_or_else(|| "OK".to_owned(), |error| format!("{error:#}")),
                "owedDetachments": owed,
            }),
            Err(error) => json!({ "lastCNILoadStatus": format!("{error:#}"), "owedDetachments": owed }),
        }
    }

    /// Whether pods can have a network: the conf list is valid, its plugins are there, and they say so themselves (STATUS).
    pub(crate) async fn status(&self) -> anyhow::Result<()> {
        let list = self.network()?.list;
        for plugin in &list.plugins {
            let program = self.plugins.find(plugin)?;
            // STATUS came with 1.1.0.
            if is_1_1(&list) {
                self.plugins.run(&program, "STATUS", &[], &stdin(&list, plugin, Value::Null, None)).await?;
            }
        }
        Ok(())
    }

    /// ADD of every plugin in turn. What DEL will need is on disk from before the first plugin runs.
    ///
    /// # Errors
    /// The failing plugin's name and own words. The caller owes a `detach`.
    pub(crate) async fn attach(&self, pod: &Pod) -> anyhow::Result<Attachment> {
        let _running = self.collecting.read().await;
        let ranges = self.ranges();
        let (network, wrong) = self.confs.current(&ranges)?;
        if let Some(error) = wrong {
            tracing::warn!(network = network.list.name, "pods get the network that was good before: {error:#}");
        }
        let mut attachment = Attachment::new(&network, pod, pod.capabilities(&ranges)?);
        let list = network.list;
        // All of them first: what cannot begin has nothing to be undone.
        let programs =
            list.plugins.iter().map(|plugin| self.plugins.find(plugin)).collect::<anyhow::Result<Vec<_>>>()?;
        let file = self.layout.attachment(&pod.id);
        record::write(&file, &attachment).with_context(|| format!("write {}", file.display()))?;
        self.show_in_cache(&attachment, &file);
        let environment = attachment.environment(None);
        let mut previous = Value::Null;
        for (plugin, program) in list.plugins.iter().zip(programs) {
            let conf = stdin(&list, plugin, previous, Some(&attachment));
            let output = self.plugins.run(&program, "ADD", &environment, &conf).await?;
            previous =
                serde_json::from_slice(&output).with_context(|| format!("result of plugin {}", name_of(plugin)))?;
        }
        attachment.result = Some(serde_json::from_value(previous).context("result of the last plugin")?);
        if attachment.addresses().is_empty() {
            // The kubelet would make the sandbox again and again.
            bail!("the plugins of network {:?} gave the pod no address", list.name);
        }
        record::write(&file, &attachment).with_context(|| format!("write {}", file.display()))?;
        Ok(attachment)
    }

    /// DEL. What fails is tried again in the background until it succeeds, and what hangs is not waited for: a pod ends when its
    /// processes do.
    pub(crate) async fn detach(self: &Arc<Self>, id: &str) {
        if !self.owed().insert(id.to_owned()) {
            return;
        }
        let (first_attempt, ended) = oneshot::channel::<()>();
        tokio::spawn(self.clone().settle(id.to_owned(), first_attempt));
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!(sandbox = id, "the network's plugins take long to detach it; not waited for");
        }
    }

    async fn settle(self: Arc<Self>, id: String, first_attempt: oneshot::Sender<()>) {
        let mut first_attempt = Some(first_attempt);
        let (mut pause, longest) = RETRY;
        while let Err(error) = self.delete(&id).await {
            match first_attempt.take() {
                Some(_) => tracing::warn!(sandbox = id, "detach the network, to be tried again: {error:#}"),
                None => tracing::debug!(sandbox = id, "detach the network, again: {error:#}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        self.owed().remove(&id);
        if first_attempt.is_none() {
            tracing::info!(sandbox = id, "the network is detached at last");
        }
    }

    /// Pods whose DEL has not succeeded yet.
    pub(crate) fn owed_detachments(&self) -> usize {
        self.owed().len()
    }

    fn owed(&self) -> MutexGuard<'_, HashSet<String>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// DEL of every plugin in reverse. Success when there was nothing to undo; the file is gone then.
    async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let _running = self.collecting.read().await;
        let file = self.layout.attachment(id);
        let mut attachment =
            match record::read::<Attachment>(&file).with_context(|| format!("read {}", file.display()))? {
                Found::Absent => return Ok(()),
                Found::Record(attachment) => attachment,
                // Cut short before ADD began, or by a power loss, which took the namespaces along.
                Found::Damaged => Attachment::unknown(&self.network()?, id),
            };
        let list = attachment.conf_list().map_err(|error| anyhow!("{}: {error}", file.display()))?;
        if !attachment.netns.is_empty() && !Path::new(&attachment.netns).exists() {
            attachment.netns = String::new();
        }
        let previous = attachment.result.as_ref().map_or(Value::Null, |result| json!(result));
        // The caller unpins the namespace next: our own plugin then leaves the link to it. Others are told to ignore what they
        // do not know.
        let environment = attachment.environment(Some("BERTH_NETNS_ENDS=1"));
        for plugin in list.plugins.iter().rev() {
            let program = self.plugins.find(plugin)?;
            let conf = stdin(&list, plugin, previous.clone(), Some(&attachment));
            self.plugins.run(&program, "DEL", &environment, &conf).await?;
        }
        remove_file(&self.cache.join(attachment.cache_name()))?;
        remove_file(&file)
    }

    /// CHECK of every plugin: whether the network of a pod is what ADD made. Success where plugins or their configuration know no CHECK.
    ///
    /// # Errors
    /// The plugin's name and own words; or that they take too long, because nobody stops the pod meanwhile.
    pub(crate) async fn check(&self, id: &str) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.run_checks(id)).await.context("CHECK takes too long")?
    }

    async fn run_checks(&self, id: &str) -> anyhow::Result<()> {
        let _running = self.collecting.read().await;
        let file = self.layout.attachment(id);
        let Some(attachment) = record::read::<Attachment>(&file)?.record() else { return Ok(()) };
        let list = attachment.conf_list().map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let Some(result) = attachment.result.as_ref().filter(|_| !list.disable_check && version(&list) >= [0, 4, 0])
        else {
            return Ok(());
        };
        for plugin in &list.plugins {
            let program = self.plugins.find(plugin)?;
            let conf = stdin(&list, plugin, json!(result), Some(&attachment));
            self.plugins.run(&program, "CHECK", &attachment.environment(None), &conf).await?;
        }
        Ok(())
    }

    /// What the plugins answered to a pod's ADD.
    pub(crate) fn attachment(layout: &Layout, id: &str) -> anyhow::Result<Option<Attachment>> {
        Ok(record::read::<Attachment>(&layout.attachment(id))?.record())
    }

    /// At start: DEL for the pods that are not among `living`, then GC, so that plugins free what belonged to anyone else. `living` is
    /// asked while no pod is on its way.
    pub(crate) async fn collect(
        self: &Arc<Self>,
        living: impl FnOnce() -> anyhow::Result<BTreeSet<String>>,
    ) -> anyhow::Result<()> {
        let alone = self.collecting.write().await;
        let living = living()?;
        let left = self.attachments()?.into_iter().filter(|id| !living.contains(id));
        drop(alone);
        for id in left {
            self.detach(&id).await;
        }
        let _alone = self.collecting.write().await;
        let list = self.network()?.list;
        if list.disable_gc || !is_1_1(&list) {
            return Ok(());
        }
        // With those that came since, and without those whose end is under way.
        let owed = self.owed().clone();
        let valid = self.attachments()?.into_iter().filter(|id| !owed.contains(id));
        let attachments: Vec<berth_cni::Attachment> =
            valid.map(|container_id| berth_cni::Attachment { container_id, ifname: INTERFACE.to_owned() }).collect();
        for plugin in &list.plugins {
            let mut conf = stdin(&list, plugin, Value::Null, None);
            // libcni has two names for it.
            conf.insert("cni.dev/valid-attachments".to_owned(), json!(attachments));
            conf.insert("cni.dev/attachments".to_owned(), json!(attachments));
            self.plugins.run(&self.plugins.find(plugin)?, "GC", &[], &conf).await?;
        }
        Ok(())
    }

    /// Pods with a record. What a crash left half-written is none, and removed: to be called while no pod is on its way.
    fn attachments(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(self.layout.attachments()).context("list the pods' attachments")?.flatten();
        let (halves, whole): (Vec<PathBuf>, Vec<PathBuf>) =
            entries.map(|entry| entry.path()).partition(|path| path.extension().is_some());
        halves.iter().try_for_each(|path| remove_file(path))?;
        let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(whole.into_iter().map(name).collect())
    }

    /// Other tools find the attachment where libcni keeps its own; a link, so that there is one truth.
    fn show_in_cache(&self, attachment: &Attachment, file: &Path) {
        let link = self.cache.join(attachment.cache_name());
        let shown = match symlink(file, &link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.cache).and_then(|()| symlink(file, &link))
            }
            result => result,
        };
        if let Err(error) = shown {
            tracing::debug!("{}: {error}", link.display());
        }
    }

    /// Links to attachments that are gone: a crash came between the two.
    fn sweep_cache(&self) {
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if target.starts_with(self.layout.attachments())
                && !target.exists()
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::debug!("{}: {error}", entry.path().display());
            }
        }
    }
}

/// Success when it is not there.
fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn parse_ranges(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().with_context(|| format!("pod_cidr: {part:?} is not a network"))).collect()
}

/// What a plugin reads: its own part of the list, and what the runtime adds (section 4, "Deriving execution configuration").
fn stdin(list: &ConfList, plugin: &Conf, previous: Value, attachment: Option<&Attachment>) -> Conf {
    let mut conf = plugin.clone();
    let declared = conf.remove("capabilities");
    conf.insert("name".to_owned(), json!(list.name));
    conf.insert("cniVersion".to_owned(), json!(list.cni_version));
    if !previous.is_null() {
        conf.insert("prevResult".to_owned(), previous);
    }
    let is_declared =
        |name: &str| declared.as_ref().and_then(|all| all.get(name)).and_then(Value::as_bool).unwrap_or(false);
    let runtime: serde_json::Map<String, Value> = attachment
        .into_iter()
        .flat_map(|attachment| &attachment.capability_args)
        .filter(|(name, _)| is_declared(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !runtime.is_empty() {
        conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    conf
}

fn is_1_1(list: &ConfList) -> bool {
    version(list) >= [1, 1, 0]
}

fn version(list: &ConfList) -> [u32; 3] {
    berth_cni::version(&list.cni_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_read_what_the_specification_says() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","x":1},{"type":"portmap","capabilities":{"portMappings":true,"dns":false}}]}"#;
        let network = Network { list: ConfList::parse(text).unwrap(), text: text.to_owned() };
        let port = berth_cni::PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: berth_cni::Protocol::Tcp,
            host_ip: String::new(),
        };
        let pod = Pod {
            id: "i".into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            netns: "/run/netns/x".into(),
            ports: vec![port],
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into(),
            dns: Some(json!({ "servers": ["10.0.0.10"] })),
            cgroup_parent: "/kubepods/pod1".into(),
        };
        let ranges = ["10.1.0.0/24".parse().unwrap()];
        let attachment = Attachment::new(&network, &pod, pod.capabilities(&ranges).unwrap());
        let list = attachment.conf_list().unwrap();
        let first = stdin(&list, &list.plugins[0], Value::Null, Some(&attachment));
        assert_eq!(json!(first), json!({ "type": "a", "x": 1, "name": "n", "cniVersion": "1.0.0" }));
        let second = stdin(&list, &list.plugins[1], json!({ "ips": [] }), Some(&attachment));
        let ports = json!([{ "hostPort": 80, "containerPort": 8080, "protocol": "tcp" }]);
        assert_eq!(second["runtimeConfig"], json!({ "portMappings": ports }));
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
        let all: Vec<&String> = attachment.capability_args.keys().collect();
        let known = ["bandwidth", "cgroupPath", "dns", "io.kubernetes.cri.pod-annotations", "ipRanges", "portMappings"];
        assert_eq!(all, known);
        assert_eq!(attachment.cache_name(), "n-i-eth0");
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=i;K8S_POD_UID=u";
        assert!(attachment.environment(None).contains(&("CNI_ARGS", args.to_owned())));
        // What libcni writes is read too.
        let text = serde_json::to_string(&attachment).unwrap();
        assert!(text.contains(r#""cniArgs":[["IgnoreUnknown","1"],"#), "{text}");
        assert!(serde_json::from_str::<Attachment>(&text).unwrap().conf_list().is_ok());
    }

    #[test]
    fn pod_networks_are_one_or_two() {
        let texts = |text: &str| parse_ranges(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(texts("10.1.0.0/24,fd00::/64").unwrap(), ["10.1.0.0/24", "fd00::/64"]);
        assert!(texts("").unwrap().is_empty());
        assert!(texts("10.1.0.0").unwrap_err().to_string().contains("not a network"));
    }
}
