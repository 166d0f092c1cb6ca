//! Who kills: at random moments, one random process of the machine that berth has to do without.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::{sync::watch, time::Instant};

use super::{board::Board, random::Random, report::Report};
use crate::{daemon::Daemon, machine::Machine};

/// How long a launch that lasts some milliseconds is waited for, to be killed.
const LYING_IN_WAIT: Duration = Duration::from_millis(60);
/// How long a daemon may take until it serves, on a machine that is busy with much else.
const RESTART: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum Target {
    Daemon,
    /// The daemon, and its successor while that starts.
    StartingDaemon,
    /// The shim of a container or of a pod's pause process, whatever it does.
    Shim,
    /// The process that makes a pod's namespaces.
    Pin,
    /// A network plugin.
    Plugin,
}

/// How often each is chosen. Pins and plugins are often missed, since they live for milliseconds.
const TARGETS: [(usize, Target); 5] = [
    (6, Target::Daemon),
    (2, Target::StartingDaemon),
    (12, Target::Shim),
    (10, Target::Pin),
    (30, Target::Plugin),
];

/// The longest pause between two kills, in milliseconds.
const PAUSE: usize = 250;

/// What one who kills needs.
#[derive(Debug)]
pub(super) struct Killer {
    pub machine: Arc<Machine>,
    pub board: Arc<Board>,
    pub report: Arc<Report>,
    pub random: Random,
}

impl Killer {
    /// Kills until `peace` is true. Takes the daemon that runs, and returns the one that runs then.
    ///
    /// # Errors
    /// A daemon does not serve.
    pub(super) async fn run(
        &mut self,
        mut daemon: Daemon,
        mut peace: watch::Receiver<bool>,
    ) -> anyhow::Result<Daemon> {
        loop {
            let pause = Duration::from_millis(self.random.below(PAUSE) as u64);
            // An error means that nobody is left who could ask for peace.
            let asked = tokio::time::timeout(pause, peace.wait_for(|peace| *peace)).await;
            if asked.is_ok() || self.board.has_failed() {
                return Ok(daemon);
            }
            match self.random.weighted(&TARGETS) {
                Target::Daemon => daemon = self.restart(daemon, None).await?,
                Target::StartingDaemon => {
                    let age = Duration::from_millis(self.random.below(150) as u64);
                    daemon = self.restart(daemon, Some(age)).await?;
                }
                Target::Shim => self.kill_shim(),
                Target::Pin => {
                    self.kill_child("pins", &daemon, |command| {
                        command.starts_with("berth-shim pin ")
                    })
                    .await;
                }
                Target::Plugin => {
                    self.kill_child("plugins", &daemon, |command| command.contains("berth-bridge"))
                        .await;
                }
            }
        }
    }

    /// Kills the daemon and starts the next one; also that one, when it is `age` old, and one more.
    async fn restart(&self, daemon: Daemon, age: Option<Duration>) -> anyhow::Result<Daemon> {
        self.board.daemon_dies();
        self.report.kill("daemons");
        end(daemon);
        if let Some(age) = age {
            let (starting, _) = self.machine.launch(&[]);
            tokio::time::sleep(age).await;
            self.report.kill("starting daemons");
            end(starting);
        }
        let begun = Instant::now();
        let (daemon, cri) = self.machine.launch(&[]);
        while let Err(error) = cri.serving().await {
            if begun.elapsed() > RESTART {
                let log = daemon.log();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("a daemon does not serve: {error}\n{}", last.join("\n"));
            }
        }
        self.report.restart(begun.elapsed());
        self.board.daemon_serves();
        Ok(daemon)
    }

    fn kill_shim(&mut self) {
        let shims = self.machine.shims();
        let shims: Vec<_> =
            shims.iter().filter(|(_, command)| command.starts_with("berth-shim run ")).collect();
        if shims.is_empty() {
            return;
        }
        let (pid, command) = shims[self.random.below(shims.len())];
        if kill(*pid, command, || self.board.shim_dies(command)).is_ok() {
            self.report.kill("shims");
        }
    }

    /// Kills the first child of the daemon with such a command line that shows up.
    async fn kill_child(&self, what: &'static str, daemon: &Daemon, is_it: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LYING_IN_WAIT;
        while Instant::now() < deadline {
            let found = children(daemon.pid()).into_iter().find(|(_, command)| is_it(command));
            if let Some((pid, command)) = found
                && kill(pid, &command, || self.board.launch_dies()).is_ok()
            {
                self.report.kill(what);
                return;
            }
            // Polled: the kernel tells only the parent when a child appears.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn end(daemon: Daemon) {
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
}

fn command_line(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).replace('\0', " ")
}

/// The children of a process, with their command lines.
fn children(parent: i32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    for thread in threads {
        // proc_pid_children(5): of each thread those that it has forked.
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let pids = list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        found.extend(pids.map(|pid| (pid, command_line(pid))));
    }
    found
}

/// Kills the process with this pid and command line; `announce` is called just before.
///
/// # Errors
/// It has ended.
fn kill(pid: i32, command: &str, announce: impl FnOnce()) -> anyhow::Result<()> {
    let process = Pid::from_raw(pid).context("a pid")?;
    // Opened before it is looked at again: the number may be another process' by now, and that may
    // be anybody's on this machine.
    let process = pidfd_open(process, PidfdFlags::empty())?;
    if command_line(pid) != command {
        bail!("it has ended");
    }
    announce();
    Ok(pidfd_send_signal(&process, rustix::process::Signal::KILL)?)
}
