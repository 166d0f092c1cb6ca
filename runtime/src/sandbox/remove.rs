//! The undo of a sandbox, from what is on disk alone: for a failed run, for Stop and Remove, and after a crash.

use std::{fs, path::Path};

use anyhow::Context;
use berth_shim::record::{self, Found};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{Meta, Pins, Sandbox, remove_file, run::pause_state};
use crate::{error::Result, id::SandboxId, layout, machine::Machine, shim, trash};

impl Sandbox {
    /// The first thing of a stop, which survives a crash: not ready from here on.
    pub(crate) fn mark_stopped(&self, machine: &Machine) -> Result<()> {
        self.end(machine);
        let path = machine.layout.sandbox(&self.meta.id).join(layout::sandbox::STOPPED);
        Ok(fs::write(&path, "").with_context(|| format!("write {}", path.display()))?)
    }
}

/// Ends the pause process, detaches the network and unpins the namespaces. Containers are the caller's business, before.
pub(crate) async fn stop(machine: &Machine, sandbox: &Sandbox) -> Result<()> {
    let directory = machine.layout.sandbox(&sandbox.meta.id);
    Ok(tear_down(machine, &sandbox.meta, &directory).await?)
}

/// Removes all of a sandbox. Success when there is nothing.
pub(crate) async fn remove(machine: &Machine, id: &SandboxId) -> Result<()> {
    let directory = machine.layout.sandbox(id);
    let _claim = shim::claim_pin(&directory).await?;
    match record::read::<Meta>(&directory.join(layout::sandbox::META)).context("read the sandbox's record")? {
        Found::Record(meta) => tear_down(machine, &meta, &directory).await?,
        // Without its first file nothing else was made.
        Found::Absent | Found::Damaged => {}
    }
    let state = machine.layout.sandbox_state(id);
    match fs::remove_dir_all(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", state.display()))?
        }
        _ => {}
    }
    Ok(trash::discard(&machine.layout, &directory).with_context(|| format!("remove {}", directory.display()))?)
}

async fn tear_down(machine: &Machine, meta: &Meta, directory: &Path) -> anyhow::Result<()> {
    end_pause(machine, meta, directory).await.context("end the pod's pause process")?;
    // With the namespace still there, so that plugins find what is in it. A failing DEL stays owed, and nobody waits for it.
    machine.networks.detach(meta.id.as_str()).await;
    let pins = Pins::of(&machine.layout, &meta.id);
    for path in [pins.ipc, pins.uts, pins.pid, pins.user].into_iter().chain(meta.netns()) {
        unpin(&path)?;
    }
    unmount(&pins.shm)
}

async fn end_pause(machine: &Machine, meta: &Meta, directory: &Path) -> anyhow::Result<()> {
    let dir = directory.join(layout::sandbox::PAUSE);
    if !dir.exists() {
        return Ok(());
    }
    shim::end(&dir, &pause_state(machine, &meta.id)).await?;
    let path = machine.cgroups.path(&meta.config.cgroup_parent, meta.id.as_str())?;
    machine.destroy_cgroup(&path).await
}

fn unpin(path: &Path) -> anyhow::Result<()> {
    unmount(path)?;
    remove_file(path)
}

/// Success when nothing is mounted there.
fn unmount(path: &Path) -> anyhow::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("unmount {}", path.display())),
    }
}
