//! The undo of a sandbox. It needs only what is on disk, so that the same code serves
//! StopPodSandbox, RemovePodSandbox, a failed RunPodSandbox, and the start after a crash.

use std::{fs, io, path::Path};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    error::{Result, ignore_not_found},
    id::SandboxId,
    layout,
    observe::{
        step, step_blocking,
        steps::{remove_sandbox, stop_sandbox},
    },
    trash,
};
use berth_shim::record::{self, Found};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{
    config::{Meta, Pins, interfaces},
    object::{Sandbox, without_record},
    pause,
};
use crate::{host::Host, shim};

impl Sandbox {
    /// Records that it is stopped. This is the first step of a stop, so that a daemon that starts
    /// after a crash does not take the pod for a ready one.
    pub fn mark_stopped(&self, host: &Host) -> Result<()> {
        step_blocking(stop_sandbox::RECORD, || Ok(self.write_marker(host)?))
    }

    fn write_marker(&self, host: &Host) -> anyhow::Result<()> {
        let id = &self.meta.id;
        let path = host.layout.sandbox(id).join(layout::sandbox::STOPPED);
        // From the reserve, because a full disk is a common reason to stop pods.
        let written = blocking(|| host.reserve.with_room(|| make_marker(&path)));
        let Err(error) = written else { return Ok(()) };
        // A disk that takes nothing, as one that has become read-only, must not keep a pod alive.
        // The state directory goes with this boot, and so do the namespaces without which the pod
        // is not ready anyway.
        tracing::warn!(
            sandbox = %id,
            "{} cannot be written ({error}): that it is stopped is known until the next boot",
            path.display()
        );
        let path = host.layout.stopped(id);
        blocking(|| make_marker(&path)).with_context(|| format!("write {}", path.display()))
    }
}

/// Makes an empty file. Success when something has its name.
fn make_marker(path: &Path) -> io::Result<()> {
    match fs::File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

/// Ends the pause process, detaches the network and unpins the namespaces. The caller has stopped
/// the pod's containers before.
pub async fn stop(host: &Host, sandbox: &Sandbox) -> Result<()> {
    let directory = host.layout.sandbox(&sandbox.meta.id);
    Ok(tear_down(host, &sandbox.meta, &interfaces(&sandbox.bridges()), &directory).await?)
}

/// Removes all of a sandbox. Success when there is nothing to remove.
pub async fn remove(host: &Host, id: &SandboxId) -> Result<()> {
    let directory = host.layout.sandbox(id);
    // A `berth-shim pin` that outlived its daemon would pin namespaces after they were unpinned
    // here.
    let _claim = shim::claim_pin(&directory).await?;
    let path = directory.join(layout::sandbox::META);
    let (meta, interfaces) = match blocking(|| record::read::<Meta>(&path)) {
        Ok(Found::Record(meta)) => {
            let interfaces = interfaces(&meta.config.bridges);
            (meta, interfaces)
        }
        Ok(Found::Absent | Found::Damaged) | Err(_) => {
            (without_record(host, id), host.networks.interfaces(id.as_str()))
        }
    };
    tear_down(host, &meta, &interfaces, &directory).await?;
    // Only now, when nothing is mounted in it any more.
    let state = host.layout.sandbox_state(id);
    step_blocking(remove_sandbox::STATE, || {
        ignore_not_found(blocking(|| fs::remove_dir_all(&state)))
            .with_context(|| format!("remove {}", state.display()))
    })?;
    // The record goes last: while it is there, a retry or the next start finds the rest.
    step_blocking(remove_sandbox::DISCARD, || {
        trash::discard(&host.layout, &directory)
            .with_context(|| format!("remove {}", directory.display()))?;
        let marker = host.layout.stopped(id);
        Ok(blocking(|| record::remove(&marker))
            .with_context(|| format!("remove {}", marker.display()))?)
    })
}

/// Undoes `run`, its last step first.
async fn tear_down(
    host: &Host,
    meta: &Meta,
    interfaces: &[String],
    directory: &Path,
) -> anyhow::Result<()> {
    step(stop_sandbox::PAUSE, pause::end(host, meta, directory))
        .await
        .context("end the pod's pause process")?;
    // Before the network namespace is unpinned, so that the plugins still find the interfaces in
    // it. A DEL that fails stays pending and is retried in the background; nobody waits for it.
    let detach = async {
        host.networks.detach_all(meta.id.as_str(), interfaces).await;
        anyhow::Ok(())
    };
    step(stop_sandbox::NETWORK, detach).await?;
    step_blocking(stop_sandbox::UNPIN, || unpin_all(host, meta))
}

fn unpin_all(host: &Host, meta: &Meta) -> anyhow::Result<()> {
    let pins = Pins::of(&host.layout, &meta.id);
    blocking(|| {
        for path in [pins.ipc, pins.uts, pins.pid, pins.user].into_iter().chain(meta.netns()) {
            unpin(&path)?;
        }
        unmount(&pins.proc)?;
        unmount(&pins.shm)
    })
}

/// Removes a namespace's file, which is a bind mount of it. The kernel then frees the namespace,
/// once no process is in it.
fn unpin(path: &Path) -> anyhow::Result<()> {
    unmount(path)?;
    ignore_not_found(fs::remove_file(path)).with_context(|| format!("remove {}", path.display()))
}

/// Unmounts `path`. Success when nothing is mounted there, which umount(2) reports as EINVAL.
///
/// The mount is detached, because a process of the host may have a file open in it; and the last
/// component is not followed, in case it is a symbolic link.
fn unmount(path: &Path) -> anyhow::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("unmount {}", path.display())),
    }
}
