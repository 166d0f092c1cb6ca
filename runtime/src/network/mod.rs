//! The pod network: which conf list, and its plugins run as the CNI specification says (SPEC.md 1.1.0, section 2 and 4).

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_cni::{Attachment, ConfList, Success, code};
use berth_shim::record::{self, Found};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::RwLock,
};

use crate::{config, layout::Layout};

/// The interface of the pod that Kubernetes looks at.
const INTERFACE: &str = "eth0";
/// A plugin that takes longer hangs: RunPodSandbox has 4 minutes in all.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A result is a page of JSON.
const MAX_OUTPUT: usize = 1 << 20;
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// One pod's part of the network, as plugins are told of it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Absent once the namespace is gone.
    pub netns: Option<PathBuf>,
    pub ports: Vec<PortMapping>,
}

/// As the `portMappings` capability has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

/// `network.json`: written without a result before ADD, so that a DEL is owed from then on; removed after DEL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attached {
    conf: ConfList,
    result: Option<Success>,
}

impl Attached {
    /// Addresses of the pod's interface, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.result else { return Vec::new() };
        // Plugins before 0.3.0 name no interfaces.
        let ours = |index: Option<usize>| {
            index.and_then(|index| result.interfaces.get(index)).is_none_or(|interface| interface.name == INTERFACE)
        };
        let mut addresses: Vec<IpAddr> =
            result.ips.iter().filter(|ip| ours(ip.interface)).map(|ip| ip.address.addr()).collect();
        addresses.sort_by_key(|address| !address.is_ipv4());
        addresses
    }

    pub(crate) fn result(&self) -> Option<&Success> {
        self.result.as_ref()
    }
}

#[derive(Debug)]
pub(crate) struct Networks {
    conf_dir: PathBuf,
    /// Of plugins, as CNI_PATH.
    bin_dirs: Vec<PathBuf>,
    ipam: PathBuf,
    /// Shared by ADD and DEL, taken alone by GC.
    collecting: RwLock<()>,
}

impl Networks {
    pub(crate) fn new(config: &config::Cni, layout: &Layout) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find own executable")?;
        let bin_dirs = config.bin_dirs.iter().cloned().chain(own.parent().map(Path::to_owned)).collect();
        Ok(Self { conf_dir: config.conf_dir.clone(), bin_dirs, ipam: layout.ipam(), collecting: RwLock::new(()) })
    }

    /// The conf list in use: the first valid file by name, or the built-in bridge where there is none at all.
    ///
    /// # Errors
    /// Files, but none that is valid.
    pub(crate) fn conf_list(&self) -> anyhow::Result<ConfList> {
        let mut names: Vec<PathBuf> = match fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.conf_dir.display())),
        };
        names.retain(|path| {
            path.extension()
                .is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known))
        });
        names.sort_unstable();
        let mut failure = None;
        for path in names {
            match fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| ConfList::parse(&text)) {
                Ok(list) => return Ok(list),
                Err(error) => failure = Some(anyhow!("{}: {error}", path.display())),
            }
        }
        failure.map_or_else(|| Ok(self.built_in()), Err)
    }

    fn built_in(&self) -> ConfList {
        let plugin = json!({
            "type": "berth-bridge", "bridge": "berth0", "isDefaultGateway": true, "ipMasq": true,
            "ipam": { "type": "berth-local", "subnet": "10.88.0.0/16", "dataDir": self.ipam },
        });
        let plugin: BTreeMap<String, Value> = serde_json::from_value(plugin).unwrap_or_default();
        ConfList {
            name: "berth".to_owned(),
            cni_version: berth_cni::VERSION.to_owned(),
            cni_versions: Vec::new(),
            disable_check: false,
            disable_gc: false,
            plugins: vec![plugin],
        }
    }

    /// Whether pods can have a network: the conf list is valid, its plugins are there, and they say so themselves (STATUS).
    pub(crate) async fn status(&self) -> anyhow::Result<()> {
        let list = self.conf_list()?;
        for plugin in &list.plugins {
            let program = self.find(plugin)?;
            // STATUS came with 1.1.0.
            if version(&list.cni_version) >= [1, 1, 0] {
                let pod = None;
                run(&program, "STATUS", &self.environment(pod), &stdin(&list, plugin, Value::Null, None)).await?;
            }
        }
        Ok(())
    }

    /// ADD of every plugin in turn. `file` holds what DEL will need, from before the first plugin runs.
    ///
    /// # Errors
    /// The failing plugin's name and own words. The caller owes a `detach`.
    pub(crate) async fn attach(&self, pod: &Pod, file: &Path) -> anyhow::Result<Attached> {
        let _running = self.collecting.read().await;
        let mut attached = Attached { conf: self.conf_list()?, result: None };
        // All of them first: what cannot begin has nothing to be undone.
        let programs =
            attached.conf.plugins.iter().map(|plugin| self.find(plugin)).collect::<anyhow::Result<Vec<_>>>()?;
        record::write(file, &attached).with_context(|| format!("write {}", file.display()))?;
        let list = &attached.conf;
        let mut previous = Value::Null;
        for (plugin, program) in list.plugins.iter().zip(programs) {
            let output =
                run(&program, "ADD", &self.environment(Some(pod)), &stdin(list, plugin, previous, Some(pod))).await?;
            previous =
                serde_json::from_slice(&output).with_context(|| format!("result of plugin {}", name_of(plugin)))?;
        }
        attached.result = Some(serde_json::from_value(previous).context("result of the last plugin")?);
        if attached.addresses().is_empty() {
            // The kubelet would make the sandbox again and again.
            bail!("the plugins of network {:?} gave the pod no address", attached.conf.name);
        }
        record::write(file, &attached).with_context(|| format!("write {}", file.display()))?;
        Ok(attached)
    }

    /// DEL of every plugin in reverse. Success when there was nothing to undo; removes `file` at the end.
    pub(crate) async fn detach(&self, pod: &Pod, file: &Path) -> anyhow::Result<()> {
        let _running = self.collecting.read().await;
        let attached = match record::read::<Attached>(file).with_context(|| format!("read {}", file.display()))? {
            Found::Absent => return Ok(()),
            Found::Record(attached) => attached,
            // Cut short before ADD began, or by a power loss, which took the namespaces along.
            Found::Damaged => Attached { conf: self.conf_list()?, result: None },
        };
        let previous = attached.result.as_ref().map_or(Value::Null, |result| json!(result));
        let mut environment = self.environment(Some(pod));
        // The caller unpins the namespace next: our own plugin then leaves the link to it. Others are told to ignore what they
        // do not know.
        environment
            .iter_mut()
            .filter(|(name, _)| *name == "CNI_ARGS")
            .for_each(|(_, args)| *args += ";BERTH_NETNS_ENDS=1");
        for plugin in attached.conf.plugins.iter().rev() {
            let program = self.find(plugin)?;
            run(&program, "DEL", &environment, &stdin(&attached.conf, plugin, previous.clone(), Some(pod))).await?;
        }
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Tells the plugins who lives, so that they free what belonged to anyone else. `living` is asked while no pod is on its way.
    pub(crate) async fn collect(&self, living: impl FnOnce() -> anyhow::Result<Vec<String>>) -> anyhow::Result<()> {
        let _alone = self.collecting.write().await;
        let list = self.conf_list()?;
        if list.disable_gc || version(&list.cni_version) < [1, 1, 0] {
            return Ok(());
        }
        let attachments: Vec<Attachment> = living()?
            .into_iter()
            .map(|container_id| Attachment { container_id, ifname: INTERFACE.to_owned() })
            .collect();
        for plugin in &list.plugins {
            let mut conf = stdin(&list, plugin, Value::Null, None);
            conf.insert("cni.dev/valid-attachments".to_owned(), json!(attachments));
            run(&self.find(plugin)?, "GC", &self.environment(None), &conf).await?;
        }
        Ok(())
    }

    fn find(&self, plugin: &BTreeMap<String, Value>) -> anyhow::Result<PathBuf> {
        let name = name_of(plugin);
        // A name and never a path: the configuration picks among what is installed.
        if !berth_cni::is_identifier(name) {
            bail!("{name:?} is not the name of a CNI plugin");
        }
        let found = self.bin_dirs.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let places: Vec<String> = self.bin_dirs.iter().map(|directory| directory.display().to_string()).collect();
            anyhow!("CNI plugin {name} is not in {}", places.join(":"))
        })
    }

    fn environment(&self, pod: Option<&Pod>) -> Vec<(&'static str, String)> {
        let places: Vec<String> = self.bin_dirs.iter().map(|directory| directory.display().to_string()).collect();
        let mut environment = vec![("CNI_PATH", places.join(":"))];
        if let Some(pod) = pod {
            let args = format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                pod.namespace, pod.name, pod.id, pod.uid
            );
            let netns = pod.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            environment.extend([
                ("CNI_CONTAINERID", pod.id.clone()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", INTERFACE.to_owned()),
                ("CNI_ARGS", args),
            ]);
        }
        environment
    }
}

fn name_of(plugin: &BTreeMap<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// What a plugin reads: its own part of the list, and what the runtime adds (section 4, "Deriving execution configuration").
fn stdin(
    list: &ConfList,
    plugin: &BTreeMap<String, Value>,
    previous: Value,
    pod: Option<&Pod>,
) -> BTreeMap<String, Value> {
    let mut conf = plugin.clone();
    let capabilities = conf.remove("capabilities");
    conf.insert("name".to_owned(), json!(list.name));
    conf.insert("cniVersion".to_owned(), json!(list.cni_version));
    if !previous.is_null() {
        conf.insert("prevResult".to_owned(), previous);
    }
    let declared =
        capabilities.as_ref().and_then(|all| all.get("portMappings")).and_then(Value::as_bool).unwrap_or(false);
    if let Some(pod) = pod.filter(|pod| declared && !pod.ports.is_empty()) {
        conf.insert("runtimeConfig".to_owned(), json!({ "portMappings": pod.ports }));
    }
    conf
}

fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Runs one plugin; its output, or its error in its own words.
async fn run(
    program: &Path,
    command: &str,
    environment: &[(&str, String)],
    conf: &BTreeMap<String, Value>,
) -> anyhow::Result<Vec<u8>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let during = || format!("CNI plugin {name} {command}");
    let mut plugin = Command::new(program);
    plugin
        .env("CNI_COMMAND", command)
        .envs(environment.iter().map(|(key, value)| (*key, value.as_str())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = spawn(&mut plugin).await.with_context(during)?;
    let request = serde_json::to_vec(conf)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let conversation = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read has its own answer.
                let _ = stdin.write_all(&request).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, read_bounded(stdout), read_bounded(stderr));
        anyhow::Ok(Output { stdout: stdout?, stderr: stderr?, status: child.wait().await? })
    };
    let output = tokio::time::timeout(TIMEOUT, conversation)
        .await
        .map_err(|_| anyhow!("no answer in {} s: killed", TIMEOUT.as_secs()))
        .and_then(|result| result)
        .with_context(during)?;
    if output.status.success() {
        // An error that came with the wrong exit status is one still.
        return match serde_json::from_slice::<berth_cni::Error>(&output.stdout) {
            Ok(error) if error.code != 0 => Err(error).with_context(during),
            _ => Ok(output.stdout),
        };
    }
    match serde_json::from_slice::<berth_cni::Error>(&output.stdout) {
        Ok(error) if command == "STATUS" && error.code == code::INVALID_ENVIRONMENT => Ok(Vec::new()),
        Ok(error) => Err(error).with_context(during),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{}: {}, and no error object: {}",
                during(),
                output.status,
                said.trim().chars().take(500).collect::<String>()
            )
        }
    }
}

/// A plugin that an installer writes at this moment is there a moment later, as libcni has it.
async fn spawn(plugin: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_ATTEMPTS {
        match plugin.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => tokio::time::sleep(BUSY_PAUSE).await,
            result => return result,
        }
    }
    plugin.spawn()
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > MAX_OUTPUT {
        bail!("more than 1 MiB of output: killed");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_read_what_the_specification_says() {
        let list = ConfList::parse(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","x":1},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        let port = PortMapping { host_port: 80, container_port: 8080, protocol: "tcp".into(), host_ip: String::new() };
        let pod = Pod {
            id: "i".into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            netns: None,
            ports: vec![port],
        };
        let first = stdin(&list, &list.plugins[0], Value::Null, Some(&pod));
        assert_eq!(json!(first), json!({ "type": "a", "x": 1, "name": "n", "cniVersion": "1.0.0" }));
        let second = stdin(&list, &list.plugins[1], json!({ "ips": [] }), Some(&pod));
        let ports = json!([{ "hostPort": 80, "containerPort": 8080, "protocol": "tcp" }]);
        assert_eq!(second["runtimeConfig"], json!({ "portMappings": ports }));
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(version("1.1.0") >= [1, 1, 0] && version("0.10.0") > version("0.4.0") && version("1.0.0") < [1, 1, 0]);
    }
}
