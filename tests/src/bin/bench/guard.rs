//! A run is a process of its own below this one, to which the kernel gives whoever loses its
//! parent: shims, which outlive their daemons by design, among them. Whatever ends the run, this
//! process kills all that is below it, and removes the directories and cgroups of its machines.
//! Mounts and networks are in namespaces, which go with the last process in them.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, geteuid},
};
use tokio::signal::unix::{SignalKind, signal};

/// Set in the environment of the process that measures.
const INSIDE: &str = "BERTH_BENCH_INSIDE";

pub(crate) fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs this program again, inside, with the same arguments; returns its exit code.
///
/// # Errors
/// It was interrupted.
pub(crate) async fn run() -> Result<ExitCode> {
    ensure!(geteuid().is_root(), "the bench makes namespaces and cgroups: run it as root");
    let scratch = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
    let status = guarded(scratch.path()).await;
    end_all().await?;
    berth_tests::sweep(scratch.path());
    scratch.close().context("remove the run's directory")?;
    match status? {
        Some(code) => Ok(ExitCode::from(code)),
        None => bail!("interrupted"),
    }
}

/// Returns the exit code of the process that measures, or None when this one is told to end.
async fn guarded(scratch: &Path) -> Result<Option<u8>> {
    prctl::set_child_subreaper(true)?;
    let mut ended = signal(SignalKind::child())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let child = Command::new("setpriv")
        // Killed with this process, if that is killed.
        .args(["--pdeathsig", "KILL"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        // Machines make their directories there.
        .env("TMPDIR", scratch)
        .env(INSIDE, "1")
        // A Ctrl-C is sent to this process alone, which then ends all others.
        .process_group(0)
        .spawn()
        .context("run setpriv")?;
    let measuring = Pid::from_raw(child.id() as i32);
    loop {
        tokio::select! {
            _ = ended.recv() => {
                if let Some(code) = reap(measuring) {
                    return Ok(Some(code));
                }
            }
            _ = interrupt.recv() => return Ok(None),
            _ = terminate.recv() => return Ok(None),
            _ = hang_up.recv() => return Ok(None),
        }
    }
}

/// Waits for all children that have ended, as init would for those whom nobody else waits for.
/// Returns the exit code of `wanted` if it is among them.
fn reap(wanted: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == wanted => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == wanted => code = Some(1),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// Kills all that is below this process. The children of those that are killed become children of
/// this one, until there are none.
async fn end_all() -> Result<()> {
    loop {
        for child in children()? {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(()),
            // A killed process may need some time, as for its memory.
            Ok(WaitStatus::StillAlive) => tokio::time::sleep(Duration::from_millis(5)).await,
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for what is killed"),
        }
    }
}

fn children() -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let list = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children.into_iter().map(Pid::from_raw).collect())
}
