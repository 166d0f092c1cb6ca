//! Ends a shim that does not exit by itself: it is stopped, or waits for a disk, or its socket is
//! gone.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, bail};
use berth_shim::{layout, protocol::Call};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::{
    connection::Connection,
    lock::{ends_within, is_alive},
};

/// How long a shim may take to exit once its container is dead: it writes the rest of the log,
/// runs hooks, and syncs a record to the disk.
pub const LEAVING: Duration = Duration::from_secs(30);
/// The same for a shim that has not answered, and may be stopped.
const LEAVING_MUTE: Duration = Duration::from_secs(2);
/// How long a shim may take to kill its container.
pub const KILLING: Duration = Duration::from_secs(1);

/// Ends the container that the shim of `dir` keeps, if the shim lives, and waits until it has
/// exited. If it does not answer, `destroy` kills the container's cgroup, and the shim is killed
/// after that.
///
/// # Errors
/// The shim cannot be killed.
pub async fn end(
    dir: &Path,
    socket_dir: &Path,
    destroy: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if !is_alive(dir).unwrap_or(true) {
        return Ok(());
    }
    // By the shim first: it then records how the container ended.
    let call = Call::Signal { exec: None, signal: nix::libc::SIGKILL };
    let asked = async { Connection::open(socket_dir).await?.call_within(KILLING, call, &[]).await };
    if asked.await.is_ok() && ends_within(dir, LEAVING).await.unwrap_or(false) {
        return Ok(());
    }
    // The container before its shim: without a shim nobody would reap its processes or notice that
    // one is left.
    if let Err(error) = destroy.await {
        tracing::warn!(dir = %dir.display(), "kill the container of a shim: {error:#}");
    }
    kill_unless_gone(dir).await
}

/// Waits for the shim of a container that is dead, and kills it if it does not exit.
///
/// # Errors
/// It cannot be killed: it is in a system call that cannot be interrupted.
pub async fn kill_unless_gone(dir: &Path) -> anyhow::Result<()> {
    if ends_within(dir, LEAVING_MUTE).await.unwrap_or(false) {
        return Ok(());
    }
    let killed = kill(dir)?;
    // If something else is in the lock's place, nothing more can be known than that.
    if !ends_within(dir, LEAVING_MUTE).await.unwrap_or(true) {
        bail!(
            "a shim keeps {} and cannot be killed (tried: {killed:?}): it waits for the kernel",
            dir.display()
        );
    }
    Ok(())
}

/// Kills the shims of `dir`, whatever they are doing, and returns their process ids.
fn kill(dir: &Path) -> anyhow::Result<Vec<u32>> {
    let mut killed = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(process) = rustix::process::Pid::from_raw(pid as i32) else { continue };
        // Opened before it is looked at, so that the process that is killed is the one that was
        // looked at. Nearly every process is not a shim, and some have ended by now.
        let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        if keeps(pid, dir) && pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).is_ok() {
            tracing::warn!(pid, dir = %dir.display(), "killed a shim that did not exit");
            killed.push(pid);
        }
    }
    Ok(killed)
}

/// Whether a process is the shim of `dir`. Its command line says so, which any process could have;
/// and it has the lock open, which no other process can.
fn keeps(pid: u32, dir: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = [b"berth-shim\0run\0--dir\0", dir.as_os_str().as_encoded_bytes(), b"\0"].concat();
    if command != wanted {
        return false;
    }
    // /proc/PID/fd shows paths without symbolic links, which the root directory may be behind.
    let Ok(real) = dir.canonicalize() else { return false };
    let lock = real.join(layout::LOCK).into_os_string();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    // The kernel appends " (deleted)" if something else has the lock's name by now.
    targets.any(|target| target.as_os_str().as_encoded_bytes().starts_with(lock.as_encoded_bytes()))
}
