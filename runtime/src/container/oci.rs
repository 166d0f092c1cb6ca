//! What another OCI runtime keeps of a container whose shim is gone: deleted by its own command line, which alone knows what that is.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use berth_shim::{
    layout as shim_layout, record,
    spec::{Program, Spec},
};
use tokio::process::Command;

use super::actor::gone;
use crate::{id::ContainerId, machine::Machine};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Success when there is nothing.
pub(super) async fn delete(machine: &Machine, id: &ContainerId) -> anyhow::Result<()> {
    let state = machine.layout.oci().join(id.as_str());
    if !state.exists() {
        return Ok(());
    }
    let spec = record::read::<Spec>(&machine.layout.container(id).join(shim_layout::SPEC))?.record();
    let runtime = spec.and_then(|spec| match spec.program {
        Program::Container(container) => container.oci_runtime,
        Program::Pause => None,
    });
    // One that was uninstalled has nothing to say any more.
    if let Some(runtime) = runtime.filter(|runtime| runtime.path.exists()) {
        let mut command = Command::new(&runtime.path);
        command.arg("--root").arg(&runtime.state).args(["delete", "--force", id.as_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TIMEOUT, command.output()).await;
        let name = runtime.path.display();
        let output = output.with_context(|| format!("{name} delete: no end within {} s", TIMEOUT.as_secs()))?;
        let output = output.with_context(|| format!("execute {name}"))?;
        if !output.status.success() && state.exists() {
            bail!("{name} delete: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    gone(fs::remove_dir_all(&state)).with_context(|| format!("remove {}", state.display()))
}
