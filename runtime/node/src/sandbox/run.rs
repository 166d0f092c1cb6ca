//! RunPodSandbox. Each step leaves its record before it acts, so that `remove` finds everything
//! after a crash at any line.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    clock::now,
    error::{Error, Result},
    id::{self, SandboxId},
    layout,
    observe::{step, step_blocking, steps::run_sandbox},
};
use berth_shim::{
    layout as shim_layout, record,
    spec::{Pin, PinnedUser},
};

use super::{
    config::{Config, Meta, NamespaceMode, NamespaceModes, Pins},
    files,
    object::{Ready, Sandbox, State, read_state},
    pause,
    remove::remove,
    sysctl,
};
use crate::{
    host::Host,
    network::{Attachment, Pending, Pod},
    security::selinux::Labels,
};

/// The size of a pod's /dev/shm in bytes, as with Docker and containerd.
const SHM_SIZE: u64 = 64 << 20;

/// Makes a sandbox that is ready.
///
/// # Errors
/// Nothing is left of it then. Where the undo fails as well, `Sandbox::incomplete` reads what is
/// left.
pub async fn run(host: &Host, id: &SandboxId, mut config: Config) -> Result<Sandbox> {
    // Whatever can be refused is refused before anything is made.
    let joined_netns = resolve_joins(host, &mut config)?;
    let sysctls = sysctl::check(&config)?;
    let other = host.handlers.oci_runtime(&config.runtime_handler)?.is_some();
    if config.namespaces.user.is_some() {
        check_user_namespace(host, &config.namespaces, other)?;
    }
    // A parent that is no valid cgroup would fail every container of the pod later.
    let cgroup = host.cgroups.path(&config.cgroup_parent, id.as_str());
    let cgroup = cgroup.map_err(|error| Error::invalid(error.to_string()))?;
    let pause_cgroup = (config.namespaces.pid == NamespaceMode::Pod).then_some(cgroup);
    let result = make(host, id, config, (joined_netns, pause_cgroup), sysctls).await;
    if result.is_err()
        && let Err(error) = remove(host, id).await
    {
        tracing::warn!(
            sandbox = %id,
            "RunPodSandbox failed, and what it made cannot be removed yet: {error:#}"
        );
    }
    Ok(result?)
}

/// Finds the sandboxes that have the namespaces to be joined: one that shares another's has none of
/// its own. Returns the name of the network namespace.
///
/// # Errors
/// `FailedPrecondition` for a sandbox that is not ready.
fn resolve_joins(host: &Host, config: &mut Config) -> Result<Option<String>> {
    if let Some(id) = config.join_ipc.take() {
        let owner = ready(host, &id)?;
        config.namespaces.ipc = owner.config.namespaces.ipc;
        if config.namespaces.ipc != NamespaceMode::Node {
            config.join_ipc = owner.config.join_ipc.or(Some(id));
        }
    }
    let Some(id) = config.join_network.take() else { return Ok(None) };
    let owner = ready(host, &id)?;
    config.namespaces.network = owner.config.namespaces.network;
    if config.namespaces.network == NamespaceMode::Node {
        return Ok(None);
    }
    let joined = owner.config.join_network.unwrap_or(id);
    // Its end has to take the interface, since the namespace lives on.
    let marker = host.layout.sandbox_state(&joined).join(layout::sandbox::JOINED);
    blocking(|| fs::write(&marker, "")).with_context(|| format!("join sandbox {joined}"))?;
    config.join_network = Some(joined);
    Ok(owner.netns.or(owner.joined_netns))
}

/// The record of a sandbox that is ready.
fn ready(host: &Host, id: &SandboxId) -> Result<Meta> {
    match blocking(|| read_state(&host.layout, id, &host.boot_id))? {
        Some((meta, State::Ready)) => Ok(meta),
        _ => Err(Error::precondition(format!("sandbox {id} is not ready"))),
    }
}

/// Refuses what a pod with a user namespace of its own cannot have.
///
/// # Errors
/// `InvalidArgument` for a contradiction in the request, `FailedPrecondition` where this machine
/// cannot make user namespaces for pods.
fn check_user_namespace(host: &Host, modes: &NamespaceModes, other_handler: bool) -> Result<()> {
    // Root of a user namespace may mount /proc and /dev/mqueue only for PID and IPC namespaces that
    // it owns. For /sys with the host's network there is another way (`MountKind::HostSysfs`).
    if modes.pid == NamespaceMode::Node || modes.ipc == NamespaceMode::Node {
        return Err(Error::invalid(
            "userns_options: a pod with a user namespace cannot have the PID or IPC namespace of \
             the host",
        ));
    }
    if other_handler {
        return Err(Error::invalid(
            "userns_options: the pod's runtime handler does not support user namespaces",
        ));
    }
    if !host.user_namespaces {
        return Err(Error::precondition(
            "userns_options: this machine cannot make user namespaces for pods (berthd's log says \
             why, at its start)",
        ));
    }
    Ok(())
}

/// The steps of RunPodSandbox.
async fn make(
    host: &Host,
    id: &SandboxId,
    config: Config,
    (joined_netns, pause_cgroup): (Option<String>, Option<String>),
    sysctls: Vec<(String, String)>,
) -> anyhow::Result<Sandbox> {
    let directory = host.layout.sandbox(id);
    let netns = config.owns_network().then(|| format!("cni-{}", uuid()));
    let created_at = now();
    // Two pods with one SELinux level could read each other's files. The guard reserves the level
    // until the sandbox, which is made last, holds it itself.
    let (labels, _level) = host.selinux.for_pod(&config.selinux)?.unzip();
    let meta =
        Meta { id: id.clone(), created_at, config, netns, labels, pause_cgroup, joined_netns };
    // The record comes first: it names the network namespace and the pause process' cgroup before
    // they exist.
    step_blocking(run_sandbox::RECORD, || write_record(&directory, &meta))?;
    // Then the namespaces, because CNI sets up interfaces in one of them. A process of its own makes
    // them, and what does not depend on them is done while it does. It is waited for whatever else
    // fails: it would go on, and make what the undo has just removed.
    let pinned = step(run_sandbox::PIN, pin(host, &meta, &directory, sysctls));
    let pods = meta.pods();
    let mut pods = pods.iter();
    let (pinned, pending) = tokio::join!(pinned, prepare(host, &meta, &directory, pods.next()));
    pinned?;
    let mut attachments = Vec::new();
    if let Some(pending) = pending? {
        attachments.push(step(run_sandbox::NETWORK, host.networks.attach(pending)).await?);
    }
    // One after the other: a GC that waits would let none in that is prepared beside another.
    for pod in pods {
        let pending = host.networks.prepare(pod).await?;
        attachments.push(step(run_sandbox::NETWORK, host.networks.attach(pending)).await?);
    }
    let addresses: Vec<IpAddr> = attachments.iter().flat_map(Attachment::addresses).collect();
    // /etc/hosts names the addresses, which are known only now.
    step_blocking(run_sandbox::FILES, || {
        blocking(|| files::write_hosts(&host.layout, &directory, &meta, &addresses))
    })?;
    if let Some(cgroup) = &meta.pause_cgroup {
        let launched =
            step(run_sandbox::PAUSE, pause::launch(host, &meta, &directory, cgroup)).await;
        launched.context("start the pod's pause process")?;
    }
    // Last of all: without this record, start-up removes the sandbox as incomplete.
    step_blocking(run_sandbox::READY, || write_ready(&directory, &host.boot_id))?;
    Ok(Sandbox::new(host, meta, State::Ready, &attachments))
}

fn write_record(directory: &Path, meta: &Meta) -> anyhow::Result<()> {
    blocking(|| {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        record::write(&directory.join(layout::sandbox::META), meta)
            .context("write the sandbox's record")
    })
}

fn write_ready(directory: &Path, boot_id: &str) -> anyhow::Result<()> {
    let ready = Ready { boot_id: boot_id.to_owned() };
    blocking(|| record::write(&directory.join(layout::sandbox::READY), &ready))
        .context("write that the sandbox is ready")
}

/// Makes what needs neither namespaces nor addresses: files, the directory for logs, and the record
/// of what ADD is about to do.
async fn prepare<'a>(
    host: &'a Host,
    meta: &Meta,
    directory: &Path,
    pod: Option<&Pod>,
) -> anyhow::Result<Option<Pending<'a>>> {
    blocking(|| files::write_fixed(&host.layout, directory, meta))?;
    // The kubelet makes it; other clients, such as crictl, may not.
    let logs = &meta.config.log_directory;
    if !logs.as_os_str().is_empty() {
        blocking(|| fs::create_dir_all(logs))
            .with_context(|| format!("make {}", logs.display()))?;
    }
    match pod {
        Some(pod) => host.networks.prepare(pod).await.map(Some),
        None => Ok(None),
    }
}

/// Has a short-lived `berth-shim pin` make the pod's namespaces and bind them to files. The daemon
/// cannot do so itself: it has several threads, and unshare(2) refuses them a new user namespace.
async fn pin(
    host: &Host,
    meta: &Meta,
    directory: &Path,
    sysctls: Vec<(String, String)>,
) -> anyhow::Result<()> {
    let pins = Pins::of(&host.layout, &meta.id);
    let own_ipc = meta.config.owns_ipc();
    let own_uts = !meta.config.shares_uts();
    let shm_size = match meta.config.shm_size {
        0 => SHM_SIZE,
        size => size,
    };
    blocking(|| fs::create_dir_all(&pins.shm))
        .with_context(|| format!("make {}", pins.shm.display()))?;
    let pin = Pin {
        net: meta.netns(),
        ipc: own_ipc.then_some(pins.ipc),
        uts: own_uts.then_some(pins.uts),
        user: meta.config.namespaces.user.map(|user| PinnedUser {
            path: pins.user,
            uids: user.uids,
            gids: user.gids,
        }),
        hostname: own_uts.then(|| meta.config.hostname.clone()).filter(|name| !name.is_empty()),
        sysctls,
        shm: (own_ipc && !meta.config.without_shm).then_some((pins.shm, shm_size)),
        label: meta.labels.as_ref().map(Labels::files),
    };
    blocking(|| record::write(&directory.join(shim_layout::PIN), &pin))
        .context("write pin.json")?;
    host.shim.pin(directory).await.context("make the pod's namespaces")
}

/// A name for a network namespace in the form that other tools know from containerd, `cni-UUID`.
fn uuid() -> String {
    let hex = id::random_hex(16);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
