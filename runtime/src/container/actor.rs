//! A container's life: launch, the connection to its shim, the stop that nothing can lose.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context;
use berth_shim::{
    layout as shim_layout,
    protocol::Call,
    record::{self, End, Exited, Failure, Found, Stage},
    spec::{MountKind, Namespace, Program, Spec},
};
use nix::{errno::Errno, sys::signal::Signal};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{Container, State, look, state::Verdict};
use crate::{
    clock::now,
    error::{Error, Kind, Result},
    events, layout,
    machine::Machine,
    sandbox::{self, NamespaceMode, Sandbox},
    shim::{self, Connection, Stuck},
    telemetry::{METRICS, step},
};

/// How long the shim of a failed launch takes to leave by itself.
const LEAVING: Duration = Duration::from_secs(2);

/// A stop in progress; a shorter grace moves the deadline.
#[derive(Debug)]
pub(super) struct Stopping {
    deadline: watch::Sender<Instant>,
}

/// `stop.json`: a stop survives the daemon.
#[derive(Debug, Serialize, Deserialize)]
struct StopRecord {
    /// Nanoseconds since the epoch.
    deadline: i64,
    signalled: bool,
}

impl Container {
    /// StartContainer. Returns once the program runs and its log file is there; `target` is whose PID namespace it joins.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is created and its sandbox ready. After any later error the container is exited, with the
    /// reason on record.
    pub(crate) async fn start(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        sandbox: &Sandbox,
        target: Option<&Self>,
    ) -> Result<()> {
        let _busy = self.busy.lock().await;
        let state = match self.state() {
            State::Created => None,
            State::Running { .. } => Some("running"),
            State::Exited { .. } => Some("exited"),
        };
        if let Some(state) = state {
            return Err(Error::precondition(format!("container {} is {state}, not created", self.meta.id)));
        }
        if sandbox.state() != sandbox::State::Ready {
            return Err(Error::precondition(format!("sandbox {} is not ready", sandbox.meta.id)));
        }
        let dir = machine.layout.container(&self.meta.id);
        let launched = self.launch(machine, target).await;
        if let Err(error) = &launched {
            if tokio::time::timeout(LEAVING, shim::await_end(&dir)).await.is_err() {
                // Stuck in what cannot be interrupted but by SIGKILL; its shim then says how it ended.
                self.destroy_cgroup(machine).await;
                shim::await_end(&dir).await?;
            }
            self.record_failure(machine, error).await;
        }
        step("start_container", "connect", self.settle(machine)).await?;
        launched.map_err(|error| describe(error).during(format!("start container {}", self.meta.id)))
    }

    async fn launch(&self, machine: &Arc<Machine>, target: Option<&Self>) -> anyhow::Result<()> {
        let dir = machine.layout.container(&self.meta.id);
        if self.meta.config.security.namespaces.pid == NamespaceMode::Target {
            let target = target.and_then(|target| match target.state() {
                State::Running { pid, .. } => Some(pid),
                _ => None,
            });
            join_target(&dir.join(shim_layout::SPEC), target)?;
        }
        if let Some(directory) = self.meta.log_path.as_deref().and_then(Path::parent) {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let made = machine.make_cgroup(&self.meta.cgroup, self.resources(), self.meta.devices());
        let placeholder = step("start_container", "cgroup", made).await?;
        let stage = || machine.cgroups.names(&self.meta.cgroup).iter().find_map(|name| Stage::parse(name));
        let launched = step("start_container", "launch", machine.shim.run(&dir, stage)).await;
        drop(placeholder);
        launched.map(drop).map_err(|error| match error.downcast_ref() {
            Some(stuck) => gave_up(&dir, stuck).into(),
            None => error,
        })
    }

    /// Writes the end that the shim could not: the launch failed before it was there, or its disk was full.
    async fn record_failure(&self, machine: &Arc<Machine>, error: &anyhow::Error) {
        let path = machine.layout.container(&self.meta.id).join(shim_layout::EXITED);
        if !path.exists() {
            let failure = error.downcast_ref::<Failure>().cloned();
            let failure =
                failure.unwrap_or_else(|| Failure { step: format!("{error:#}"), path: String::new(), errno: 0 });
            if let Err(error) =
                record::write_durable(&path, &Exited { end: End::NotStarted(failure), at: now(), oom: false })
            {
                tracing::warn!(container = %self.meta.id, %error, "record that it did not start");
            }
        }
        self.destroy_cgroup(machine).await;
    }

    async fn destroy_cgroup(&self, machine: &Machine) {
        if let Err(error) = machine.destroy_cgroup(&self.meta.cgroup).await {
            tracing::warn!(container = %self.meta.id, "remove its cgroup: {error:#}");
        }
    }

    /// Brings the state in line with what is on disk: after a launch, at a connection's end, at start-up.
    pub(crate) async fn settle(self: &Arc<Self>, machine: &Arc<Machine>) -> anyhow::Result<()> {
        let dir = machine.layout.container(&self.meta.id);
        loop {
            let (verdict, started) = look(&dir, &machine.boot_id)?;
            let started_at = started.as_ref().map_or(0, |started| started.at);
            match verdict {
                Verdict::Created => return Ok(()),
                Verdict::Launching => tokio::time::sleep(shim::LAUNCHING).await,
                Verdict::Exited(exited) => {
                    self.set_connection(None);
                    METRICS.end(Self::reason(&exited).0);
                    self.state.send_replace(State::Exited { started_at, exited });
                    self.tell(machine, events::Kind::Stopped);
                    return Ok(());
                }
                Verdict::Lost(end) => {
                    self.destroy_cgroup(machine).await;
                    let exited = Exited { end, at: now(), oom: false };
                    record::write_durable(&dir.join(shim_layout::EXITED), &exited)
                        .context("record the container's end")?;
                }
                Verdict::Running => match Connection::open(&machine.layout.container_state(&self.meta.id)).await {
                    Ok(connection) => {
                        self.set_connection(Some(Arc::new(connection)));
                        let pid = started.map_or(0, |started| started.pid);
                        self.state.send_replace(State::Running { pid, started_at });
                        self.tell(machine, events::Kind::Started);
                        self.watch(machine);
                        return Ok(());
                    }
                    // It has left since, or is about to.
                    Err(_) => shim::await_end(&dir).await?,
                },
            }
        }
    }

    /// End-of-file on the shim's socket is the container's end.
    fn watch(self: &Arc<Self>, machine: &Arc<Machine>) {
        let (container, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            if let Some(connection) = container.connection() {
                connection.closed().await;
            }
            if let Err(error) = Box::pin(container.settle(&machine)).await {
                tracing::warn!(container = %container.meta.id, "read how it ended: {error:#}");
            }
        });
    }

    /// StopContainer: the stop signal, then SIGKILL after `grace`; returns once it ended. Success when it does not run.
    ///
    /// A caller that goes away changes nothing, and one with a shorter grace takes effect.
    pub(crate) async fn stop(self: &Arc<Self>, machine: &Arc<Machine>, grace: Duration) -> Result<()> {
        let mut state = self.state.subscribe();
        {
            // A start under way comes to its end first.
            let _busy = self.busy.lock().await;
            if !matches!(*state.borrow(), State::Running { .. }) {
                return Ok(());
            }
            self.begin_stop(machine, grace, grace.is_zero());
        }
        state
            .wait_for(|state| matches!(state, State::Exited { .. }))
            .await
            .map(drop)
            .map_err(|error| Error::new(Kind::Internal, error.to_string()))
    }

    /// Goes on with a stop that an earlier daemon began.
    pub(crate) fn resume_stop(self: &Arc<Self>, machine: &Arc<Machine>) {
        let path = machine.layout.container(&self.meta.id).join(layout::container::STOP);
        if let Ok(Found::Record(StopRecord { deadline, signalled })) = record::read(&path) {
            let left = u64::try_from(deadline - now()).unwrap_or(0);
            self.begin_stop(machine, Duration::from_nanos(left), signalled);
        }
    }

    fn begin_stop(self: &Arc<Self>, machine: &Arc<Machine>, grace: Duration, signalled: bool) {
        let deadline = Instant::now() + grace;
        let mut stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Stopping { deadline: current }) = &*stopping {
            if deadline < *current.borrow() {
                self.record_stop(machine, grace, true);
                current.send_replace(deadline);
            }
            return;
        }
        self.record_stop(machine, grace, signalled);
        let (sender, receiver) = watch::channel(deadline);
        *stopping = Some(Stopping { deadline: sender });
        let (container, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move { container.escalate(&machine, receiver, grace, signalled).await });
    }

    fn record_stop(&self, machine: &Machine, grace: Duration, signalled: bool) {
        let path = machine.layout.container(&self.meta.id).join(layout::container::STOP);
        let record = StopRecord {
            deadline: now().saturating_add(i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX)),
            signalled,
        };
        if let Err(error) = record::write(&path, &record) {
            tracing::warn!(container = %self.meta.id, %error, "a stop that a restart would forget");
        }
    }

    async fn escalate(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        mut deadline: watch::Receiver<Instant>,
        grace: Duration,
        signalled: bool,
    ) {
        if !signalled {
            self.signal(self.meta.stop_signal).await;
            self.record_stop(machine, grace, true);
        }
        let mut state = self.state.subscribe();
        loop {
            let at = *deadline.borrow_and_update();
            tokio::select! {
                _ = state.wait_for(|state| matches!(state, State::Exited { .. })) => return,
                _ = deadline.changed() => {}
                () = tokio::time::sleep_until(at) => break,
            }
        }
        if !self.signal(Signal::SIGKILL as i32).await {
            self.destroy_cgroup(machine).await;
        }
    }

    /// Whether the shim took it.
    async fn signal(&self, signal: i32) -> bool {
        let Some(connection) = self.connection() else { return false };
        let result = connection.call(Call::Signal { exec: None, signal }, &[]).await;
        if let Err(error) = &result {
            tracing::debug!(container = %self.meta.id, signal, "signal: {error:#}");
        }
        result.is_ok()
    }
}

/// Says for what a launch waited in vain.
fn gave_up(dir: &Path, stuck: &Stuck) -> Error {
    let source = |index: usize| match record::read::<Spec>(&dir.join(shim_layout::SPEC)).ok()?.record()?.program {
        Program::Container(container) => match &container.mounts.get(index)?.kind {
            MountKind::Bind { source, .. } => Some(source.display().to_string()),
            _ => None,
        },
        Program::Pause => None,
    };
    let at = match stuck.0 {
        Some(Stage::Mount(index)) => format!("opening mount source {}", source(index).unwrap_or_default()),
        Some(Stage::Label(_)) => "labelling the files of a mount".to_owned(),
        Some(Stage::Hook(_)) => "running a hook of its devices".to_owned(),
        Some(Stage::Copy(_)) => "copying the image's files for a volume".to_owned(),
        None => "setting up the container".to_owned(),
    };
    Error::new(Kind::DeadlineExceeded, format!("{stuck}: {at}"))
}

fn join_target(path: &Path, pid: Option<u32>) -> anyhow::Result<()> {
    let pid = pid.ok_or_else(|| Error::precondition("the container whose processes it is to see does not run"))?;
    let mut spec: Spec = record::read(path)?.record().context("the spec is damaged")?;
    spec.namespaces.pid = Namespace::Join(format!("/proc/{pid}/ns/pid").into());
    Ok(record::write(path, &spec)?)
}

/// How the shim's words begin where no system call failed and the node is well.
const AT_FAULT: [&str; 7] = [
    "nobody may relabel",
    "no such user",
    "no such group",
    "larger than 10 MiB",
    "not on a shared",
    "the image's volume",
    "working directory is outside",
];

/// What the image or the request is at fault for is told apart from what the node is.
fn describe(error: anyhow::Error) -> Error {
    let Some(failure) = error.downcast_ref::<Failure>() else { return error.into() };
    let kind = match (failure.step.as_str(), Errno::from_raw(failure.errno)) {
        (_, Errno::ENOSPC | Errno::EDQUOT) => Kind::ResourceExhausted,
        ("execve", Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ENOEXEC | Errno::EISDIR) => {
            Kind::InvalidArgument
        }
        (step, _) if AT_FAULT.iter().any(|start| step.starts_with(start)) => Kind::InvalidArgument,
        _ => Kind::Internal,
    };
    Error::new(kind, failure.to_string())
}

/// Success when it is not there.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
