//! The one process that berth itself runs in a pod, and only in one whose containers share a PID
//! namespace: the shim's built-in pause. It is the first process there, and so the parent of all
//! orphans, which it reaps.

use std::{fs, path::Path};

use anyhow::Context;
use berth_base::{blocking::blocking, id::SandboxId, layout};
use berth_shim::{
    layout as shim_layout,
    record::{self, Found},
    spec::{Namespace, Namespaces, Program, Spec, Stdio},
};

use super::config::{Meta, NamespaceMode, Pins};
use crate::{
    cgroup::{Devices, Resources},
    host::Host,
    security::selinux::Labels,
    shim::{self, Connection},
};

/// Starts the pause process, whose PID namespace the pod's containers join.
pub(super) async fn launch(
    host: &Host,
    meta: &Meta,
    directory: &Path,
    cgroup: &str,
) -> anyhow::Result<()> {
    let dir = directory.join(layout::sandbox::PAUSE);
    let state = host.layout.pause_state(&meta.id);
    for path in [&dir, &state] {
        blocking(|| fs::create_dir_all(path))
            .with_context(|| format!("make {}", path.display()))?;
    }
    let pins = Pins::of(&host.layout, &meta.id);
    let spec = Spec {
        id: meta.id.to_string(),
        sandbox: meta.id.to_string(),
        socket_dir: state,
        // How it ends is of no interest after a reboot.
        records: Vec::new(),
        cgroups: host.cgroups.directories(cgroup),
        namespaces: Namespaces {
            // It opens no files and no sockets, so that only the PID namespace is its own.
            net: Namespace::Host,
            ipc: Namespace::Host,
            uts: Namespace::Host,
            pid: Namespace::New,
            user: meta.user_namespace(&host.layout),
            pin_pid: Some(pins.pid),
            pin_proc: Some(pins.proc),
            target: None,
            host_cgroup: false,
        },
        program: Program::Pause,
        label: meta.labels.as_ref().map(Labels::files),
        stdio: Stdio::default(),
    };
    blocking(|| record::write(&dir.join(shim_layout::SPEC), &spec))
        .context("write the pause process' spec")?;
    // No limits: the process does nothing but wait. No devices, because it needs none.
    let made = host.make_cgroup(cgroup, Resources::default(), Devices::Only(Vec::new()));
    host.shim.run(&dir, made, || None).await
}

/// Returns when the process that holds the pod's PID namespace has ended, or cannot be reached.
pub(super) async fn ended(host: &Host, id: &SandboxId) {
    if let Ok(connection) = Connection::open(&host.layout.pause_state(id)).await {
        connection.closed().await;
    }
}

/// Whether the pod needs a pause process, without which none of its containers can run.
pub(super) fn is_needed(meta: &Meta) -> bool {
    meta.config.namespaces.pid == NamespaceMode::Pod
}

/// Ends the pause process and removes its cgroup. Success when there is none.
pub(super) async fn end(host: &Host, meta: &Meta, directory: &Path) -> anyhow::Result<()> {
    let dir = directory.join(layout::sandbox::PAUSE);
    if !dir.exists() {
        return Ok(());
    }
    // The cgroup that it was started in, by the record. The pod's parent may mean another one by
    // now, such as after a change of the cgroup driver.
    let path = dir.join(shim_layout::SPEC);
    let spec = || blocking(|| record::read::<Spec>(&path)).ok().and_then(Found::record);
    let cgroup = meta.pause_cgroup.clone().or_else(|| host.cgroups.path_of(&spec()?.cgroups));
    // Neither record names one, so nothing was launched.
    let Some(cgroup) = cgroup else { return Ok(()) };
    // As with a container: through its shim, and by force where that does not respond.
    shim::end(&dir, &host.layout.pause_state(&meta.id), host.destroy_cgroup(&cgroup)).await?;
    host.destroy_cgroup(&cgroup).await
}
