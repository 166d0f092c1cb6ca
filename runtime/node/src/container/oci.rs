//! What another OCI runtime, such as runsc, leaves of a container whose shim is gone. Its own
//! `delete` removes that, because nobody else knows what it consists of.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use berth_base::{blocking::blocking, error::ignore_not_found, id::ContainerId};
use berth_shim::{
    layout as shim_layout, record,
    spec::{Program, Spec},
};
use tokio::process::Command;

use crate::host::Host;

/// How long its `delete` may take. It may wait for processes to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Deletes what the runtime keeps of container `id`. Success when it keeps nothing.
pub(super) async fn delete(host: &Host, id: &ContainerId) -> anyhow::Result<()> {
    let state = host.layout.oci().join(id.as_str());
    if !state.exists() {
        return Ok(());
    }
    let path = host.layout.container(id).join(shim_layout::SPEC);
    let spec = blocking(|| record::read::<Spec>(&path))?.record();
    let runtime = spec.and_then(|spec| match spec.program {
        Program::Container(container) => container.oci_runtime,
        Program::Pause => None,
    });
    // Where the runtime was uninstalled, only its state directory is left to be removed.
    if let Some(runtime) = runtime.filter(|runtime| runtime.path.exists()) {
        let mut command = Command::new(&runtime.path);
        command.arg("--root").arg(&runtime.state).args(["delete", "--force", id.as_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        // `kill_on_drop` ends it with the timeout.
        let output = tokio::time::timeout(TIMEOUT, command.output()).await;
        let name = runtime.path.display();
        let output = output
            .with_context(|| format!("{name} delete: still runs after {} s", TIMEOUT.as_secs()))?;
        let output = output.with_context(|| format!("execute {name}"))?;
        // It fails, too, for a container that it does not know; without state there is nothing
        // left.
        if !output.status.success() && state.exists() {
            bail!("{name} delete: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    ignore_not_found(blocking(|| fs::remove_dir_all(&state)))
        .with_context(|| format!("remove {}", state.display()))
}
