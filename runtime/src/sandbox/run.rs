//! RunPodSandbox, in the order in which a crash at any line leaves what `remove` can find.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use berth_shim::{
    layout as shim_layout, record,
    spec::{Namespace, Namespaces, Pin, PinnedUser, Program, Spec, Stdio},
};

use super::{Config, Meta, NamespaceMode, Pins, Ready, Sandbox, State, files, remove};
use crate::{
    cgroup::{Devices, Resources},
    clock::now,
    error::{Error, Result},
    id::{self, SandboxId},
    layout,
    machine::Machine,
    selinux::Labels,
    telemetry::step,
};

/// As Docker and containerd have it.
const SHM_SIZE: u64 = 64 << 20;
/// What pods may do without privileges: bind ports below 1024 and ping, as containerd's defaults allow.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
/// sysctls of an IPC namespace, besides `fs.mqueue.*` (ipc_namespaces(7)).
const IPC_SYSCTLS: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msg_next_id",
];
const UTS_SYSCTLS: [&str; 2] = ["kernel.hostname", "kernel.domainname"];

/// Makes a sandbox that is ready. On an error nothing is left of it, or, where the undo itself fails, what `Sandbox::leftover`
/// reads.
pub(crate) async fn run(machine: &Machine, id: &SandboxId, config: Config) -> Result<Sandbox> {
    let sysctls = check_sysctls(&config)?;
    let other = machine.handlers.oci_runtime(&config.runtime_handler)?.is_some();
    if config.namespaces.user.is_some() && other {
        return Err(Error::invalid("userns_options: not with this runtime handler"));
    }
    if config.namespaces.user.is_some() && !machine.user_namespaces {
        return Err(Error::precondition("userns_options: this machine cannot give pods user namespaces of their own"));
    }
    let result = make(machine, id, config, sysctls).await;
    if result.is_err()
        && let Err(error) = remove(machine, id).await
    {
        tracing::warn!(sandbox = %id, "undo a failed RunPodSandbox: {error:#}");
    }
    Ok(result?)
}

async fn make(
    machine: &Machine,
    id: &SandboxId,
    config: Config,
    sysctls: Vec<(String, String)>,
) -> anyhow::Result<Sandbox> {
    let directory = machine.layout.sandbox(id);
    let netns = (config.namespaces.network != NamespaceMode::Node).then(|| format!("cni-{}", uuid()));
    let created_at = now();
    // Its level is taken until the sandbox itself takes it.
    let (labels, _level) = machine.selinux.for_pod(&config.selinux)?.unzip();
    let meta = Meta { id: id.clone(), created_at, config, netns, labels };
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    record::write(&directory.join(layout::sandbox::META), &meta).context("write the sandbox's record")?;
    step("run_sandbox", "pin", pin(machine, &meta, &directory, sysctls)).await?;
    let addresses = match meta.pod() {
        Some(pod) => step("run_sandbox", "network", machine.networks.attach(&pod)).await?.addresses(),
        None => Vec::new(),
    };
    files::write(&directory, &meta, &addresses)?;
    if meta.config.namespaces.pid == NamespaceMode::Pod {
        let launched = step("run_sandbox", "pause", launch_pause(machine, &meta, &directory)).await;
        launched.context("start the pod's pause process")?;
    }
    let logs = &meta.config.log_directory;
    if !logs.as_os_str().is_empty() {
        fs::create_dir_all(logs).with_context(|| format!("make {}", logs.display()))?;
    }
    let ready = Ready { boot_id: machine.boot_id.clone() };
    record::write(&directory.join(layout::sandbox::READY), &ready).context("write that the sandbox is ready")?;
    Ok(Sandbox::new(machine, meta, State::Ready, addresses))
}

async fn pin(machine: &Machine, meta: &Meta, directory: &Path, sysctls: Vec<(String, String)>) -> anyhow::Result<()> {
    let pins = Pins::of(&machine.layout, &meta.id);
    let own_ipc = meta.config.namespaces.ipc != NamespaceMode::Node;
    // A hostname of the pod needs a UTS namespace; with the host's network an empty one means the host's.
    let own_uts = !meta.config.shares_uts();
    fs::create_dir_all(&pins.shm).with_context(|| format!("make {}", pins.shm.display()))?;
    let pin = Pin {
        net: meta.netns(),
        ipc: own_ipc.then_some(pins.ipc),
        uts: own_uts.then_some(pins.uts),
        user: meta.config.namespaces.user.map(|user| PinnedUser { path: pins.user, uids: user.uids, gids: user.gids }),
        hostname: own_uts.then(|| meta.config.hostname.clone()).filter(|name| !name.is_empty()),
        sysctls,
        shm: own_ipc.then_some((pins.shm, SHM_SIZE)),
        label: meta.labels.as_ref().map(Labels::files),
    };
    record::write(&directory.join(shim_layout::PIN), &pin).context("write pin.json")?;
    machine.shim.pin(directory).await.context("make the pod's namespaces")
}

impl Config {
    pub(crate) fn shares_uts(&self) -> bool {
        self.hostname.is_empty() && self.namespaces.network == NamespaceMode::Node
    }
}

/// The first process of a PID namespace that all containers of the pod share.
async fn launch_pause(machine: &Machine, meta: &Meta, directory: &Path) -> anyhow::Result<()> {
    let (dir, state) = (directory.join(layout::sandbox::PAUSE), pause_state(machine, &meta.id));
    for path in [&dir, &state] {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    }
    let cgroup = machine.cgroups.path(&meta.config.cgroup_parent, meta.id.as_str())?;
    let placeholder = machine.make_cgroup(&cgroup, Resources::default(), Devices::Only(Vec::new())).await?;
    let spec = Spec {
        id: meta.id.to_string(),
        socket_dir: state,
        cgroups: machine.cgroups.directories(&cgroup),
        namespaces: Namespaces {
            net: Namespace::Host,
            ipc: Namespace::Host,
            uts: Namespace::Host,
            pid: Namespace::New,
            user: meta.user_namespace(&machine.layout),
            pin_pid: Some(Pins::of(&machine.layout, &meta.id).pid),
        },
        program: Program::Pause,
        stdio: Stdio { log: None, stdin: false, stdin_once: false },
    };
    record::write(&dir.join(shim_layout::SPEC), &spec).context("write the pause process' spec")?;
    let launched = machine.shim.run(&dir, || None).await;
    drop(placeholder);
    launched.map(drop)
}

pub(super) fn pause_state(machine: &Machine, id: &SandboxId) -> PathBuf {
    machine.layout.sandbox_state(id).join(layout::sandbox::PAUSE)
}

/// The sysctls to set, defaults first.
///
/// # Errors
/// `InvalidArgument` for one that is not of a namespace that the pod has of its own: it would change the host.
fn check_sysctls(config: &Config) -> Result<Vec<(String, String)>> {
    let (own_net, own_ipc) =
        (config.namespaces.network != NamespaceMode::Node, config.namespaces.ipc != NamespaceMode::Node);
    let mut sysctls: Vec<(String, String)> = Vec::new();
    if own_net {
        let given = |name: &str| config.sysctls.contains_key(name);
        let defaults = DEFAULT_SYSCTLS.iter().filter(|(name, _)| !given(name));
        sysctls.extend(defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }
    for (name, value) in &config.sysctls {
        check_sysctl(name, own_net, own_ipc, !config.shares_uts())
            .map_err(|error| Error::invalid(format!("sysctl {name:?}: {error}")))?;
        sysctls.push((name.clone(), value.clone()));
    }
    Ok(sysctls)
}

fn check_sysctl(name: &str, own_net: bool, own_ipc: bool, own_uts: bool) -> anyhow::Result<()> {
    let dotted = name.replace('/', ".");
    if dotted.contains("..") || dotted.starts_with('.') || name.contains('\0') {
        bail!("not a sysctl's name");
    }
    let (needs, has) = if dotted.starts_with("net.") {
        ("network", own_net)
    } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        ("IPC", own_ipc)
    } else if UTS_SYSCTLS.contains(&dotted.as_str()) {
        ("UTS", own_uts)
    } else {
        bail!("belongs to no namespace of a pod and would change the host");
    };
    if has { Ok(()) } else { bail!("the pod has the host's {needs} namespace, which it would change") }
}

fn uuid() -> String {
    let hex = id::random_hex(16);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::check_sysctl;

    #[test]
    fn sysctls_belong_to_a_namespace_of_the_pod() {
        for (name, net, ipc, uts, allowed) in [
            ("net.core.somaxconn", true, true, true, true),
            ("net/core/somaxconn", true, true, true, true),
            ("net.core.somaxconn", false, true, true, false),
            ("kernel.shmmax", true, true, true, true),
            ("kernel.shmmax", true, false, true, false),
            ("fs.mqueue.msg_max", false, true, true, true),
            ("kernel.domainname", true, true, false, false),
            ("kernel.panic", true, true, true, false),
            ("vm.swappiness", true, true, true, false),
            ("net.../../kernel/panic", true, true, true, false),
            ("net/../kernel/panic", true, true, true, false),
        ] {
            assert_eq!(check_sysctl(name, net, ipc, uts).is_ok(), allowed, "{name}");
        }
    }
}
