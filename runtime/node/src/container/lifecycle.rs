//! The life of a container: its launch, the connection to its shim, and its end.
//!
//! The truth is on disk. `reconcile` reads it and brings the published state in line, whichever
//! side died in the meantime.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{
    blocking::blocking,
    clock::now,
    error::{self, Error, Kind, Result},
    observe::{METRICS, step, step_blocking, steps::start_container},
};
use berth_shim::{
    layout as shim_layout,
    record::{self, End, Exited, Failure, Fault, Found, Stage, Started},
    spec::{MountKind, Namespace, Program, Spec, Target},
};
use nix::errno::Errno;
use tokio::task::JoinHandle;

use super::{
    object::{Container, read_spec},
    state::{self, State, Verdict},
};
use crate::{
    events,
    host::Host,
    sandbox::{self, NamespaceMode, Sandbox},
    shim::{self, Connection, Stalled},
};

/// How long the shim of a failed launch may take to exit by itself, before it is killed.
const LEAVING: Duration = Duration::from_secs(2);
/// The first and the longest pause between two attempts to read a container's directory. What makes
/// an attempt fail passes by itself: a disk that does not respond, or no free descriptor.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often the daemon checks whether a shim without a socket is still alive. There is no
/// connection whose end would announce it, so its lock is polled.
const TRY_LOCK: Duration = Duration::from_secs(1);

impl Container {
    /// StartContainer. Returns once the program runs and its log file exists; `target` is the
    /// container whose PID namespace it joins.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is created and its sandbox ready. After any later error the
    /// container is exited, with the reason on record.
    pub async fn start(
        self: &Arc<Self>,
        host: &Arc<Host>,
        sandbox: &Sandbox,
        target: Option<&Self>,
    ) -> Result<()> {
        // Held until the launch has ended, so that a stop or an update that arrives now finds
        // either a running container or an exited one, and never half of a launch.
        let life = self.life().await;
        let state = match self.state() {
            State::Created if life.removing => Some("being removed"),
            State::Created => None,
            State::Unknown { .. } => Some("in an unknown state"),
            State::Running { .. } => Some("running"),
            State::Exited { .. } => Some("exited"),
        };
        if let Some(state) = state {
            let what = format!("container {} is {state}, not created", self.meta.id);
            return Err(Error::precondition(what));
        }
        // Its namespaces are those of the sandbox, which are unpinned once that is stopped.
        if sandbox.state() != sandbox::State::Ready {
            let what = format!("sandbox {} is not ready", sandbox.meta.id);
            return Err(Error::precondition(what));
        }
        if let Err(error) = self.launch(host, target).await {
            // The state is Exited before the caller hears of the failure, so that a status that it
            // asks for next has the reason.
            self.launch_failed(host, &error).await?;
            return Err(describe(error).during(format!("start container {}", self.meta.id)));
        }
        if let Err(error) = step(start_container::CONNECT, self.reconcile(host)).await {
            // The program runs, although its shim cannot be reached at the moment. The caller gets
            // the error; statuses are right again once a later attempt has reached the shim. Until
            // then it does not count as created: another start would meet the shim of this one, and
            // end it as what is left of a failed launch.
            self.set_state(State::Unknown { why: format!("{error:#}") });
            self.reconcile_later(host);
            return Err(error.into());
        }
        Ok(())
    }

    async fn launch(&self, host: &Arc<Host>, target: Option<&Self>) -> anyhow::Result<()> {
        let directory = host.layout.container(&self.meta.id);
        // CreateContainer has made it, on a tmpfs: a container that was created before a reboot has
        // lost it.
        let state = host.layout.container_state(&self.meta.id);
        blocking(|| fs::create_dir_all(&state))
            .with_context(|| format!("make {}", state.display()))?;
        if self.meta.config.security.namespaces.pid == NamespaceMode::Target {
            // Which process the target has is known only now, because it may have been started
            // after this container was created. The daemon writes it into the spec, so that the
            // shim need not know about other containers.
            let running = target.and_then(|target| match target.state() {
                State::Running { started, .. } => Some(started),
                _ => None,
            });
            let path = directory.join(shim_layout::SPEC);
            step_blocking(start_container::TARGET, || {
                blocking(|| join_target(&path, running.as_deref()))
            })?;
        }
        // The cgroup and its limits are there before the shim makes the first process, which is born
        // inside of it: none of the container's code ever runs without them. A placeholder keeps
        // systemd from removing the scope until the container's own processes are in it.
        let made = host.make_cgroup(&self.meta.cgroup, self.resources(), self.meta.devices());
        let made = step(start_container::CGROUP, made);
        let launched = host.shim.run(&directory, made, || self.stage(host));
        let launched = step(start_container::LAUNCH, launched).await;
        launched.map_err(|error| match error.downcast_ref() {
            Some(stalled) => gave_up(&directory, stalled).into(),
            None => error,
        })
    }

    /// How far a launch has come. Its processes set their name (PR_SET_NAME) to the stage, which is
    /// readable even while they are blocked in a system call.
    fn stage(&self, host: &Host) -> Option<Stage> {
        let names = host.cgroups.names(&self.meta.cgroup);
        names.iter().find_map(|name| Stage::parse(name))
    }

    /// Ends what is left of a failed launch, and records why it failed.
    async fn launch_failed(
        self: &Arc<Self>,
        host: &Arc<Host>,
        error: &anyhow::Error,
    ) -> anyhow::Result<()> {
        let directory = host.layout.container(&self.meta.id);
        if !shim::ends_within(&directory, LEAVING).await.unwrap_or(false) {
            // The starting process is blocked in a system call that only SIGKILL interrupts, as on
            // an NFS server that does not respond. Its shim sees it end, and records that.
            self.force_end(host).await?;
        }
        let exited = match self.read_state(host) {
            Ok((Verdict::Exited(exited), _)) => exited,
            // The launch failed before there was a shim, or the shim could not write its record.
            _ => not_started(error),
        };
        // No process of it may be alive once the state says Exited, because the kubelet then starts
        // a successor.
        self.destroy_cgroup(host).await;
        self.publish_end(host, None, exited);
        Ok(())
    }

    /// Kills all of its processes without asking its shim, and then the shim if that does not exit.
    pub(super) async fn force_end(&self, host: &Host) -> anyhow::Result<()> {
        // The cgroup first: a shim that works reaps the processes, writes `exit.json`, and exits by
        // itself. Killing the shim first would lose the true exit code.
        self.destroy_cgroup(host).await;
        shim::kill_unless_gone(&host.layout.container(&self.meta.id)).await
    }

    fn read_state(&self, host: &Host) -> anyhow::Result<(Verdict, Option<Started>)> {
        let directory = host.layout.container(&self.meta.id);
        let socket_directory = host.layout.container_state(&self.meta.id);
        blocking(|| state::read(&directory, &socket_directory, &host.boot_id))
    }

    async fn destroy_cgroup(&self, host: &Host) {
        if let Err(error) = host.destroy_cgroup(&self.meta.cgroup).await {
            // Not an error here: RemoveContainer tries again, and reports a failure to its caller.
            tracing::warn!(container = %self.meta.id, "its cgroup cannot be removed: {error:#}");
        }
    }

    /// Brings the published state in line with what is on disk. Called after a launch, when a
    /// connection to a shim ends, and when the daemon starts.
    ///
    /// # Errors
    /// The disk cannot be read, or the shim cannot be reached, at this moment.
    pub async fn reconcile(self: &Arc<Self>, host: &Arc<Host>) -> anyhow::Result<()> {
        // Each pass reads the disk anew: a shim that exits between the reading and the connecting
        // has written `exit.json` by then, and the next pass finds that.
        loop {
            let (verdict, started) = self.read_state(host)?;
            let started = started.map(Arc::new);
            match (verdict, started) {
                (Verdict::Created, _) => {
                    // Exited is final: a container whose `exit.json` is not on disk yet, because
                    // the disk is full, must not become startable again.
                    if matches!(self.state(), State::Unknown { .. }) {
                        self.set_state(State::Created);
                    }
                    return Ok(());
                }
                (Verdict::Exited(exited), started) => {
                    self.publish_end(host, started, exited);
                    return Ok(());
                }
                (Verdict::Lost(end), started) => {
                    // Whatever still runs has no shim to collect its output and its exit code.
                    self.destroy_cgroup(host).await;
                    self.publish_end(host, started, Exited { end, at: now(), oom: false });
                    return Ok(());
                }
                (Verdict::Running, Some(started)) => {
                    if self.connect(host, started).await? {
                        return Ok(());
                    }
                }
                (Verdict::Launching | Verdict::Running, _) => self.await_launch(host).await?,
            }
        }
    }

    /// Reconciles in the background, and retries for as long as it takes.
    pub fn reconcile_later(self: &Arc<Self>, host: &Arc<Host>) -> JoinHandle<()> {
        let container = self.clone();
        let host = host.clone();
        tokio::spawn(async move {
            let (mut pause, longest) = RETRY;
            while let Err(error) = Box::pin(container.reconcile(&host)).await {
                if container.life().await.is_removed() {
                    // What has its id from here on is another container.
                    return;
                }
                tracing::warn!(
                    container = %container.meta.id,
                    "the container's state cannot be read; retrying in {} ms, and if that stays \
                     so, it is to be removed (`crictl rm -f {}`): {error:#}",
                    pause.as_millis(),
                    container.meta.id
                );
                // Statuses show the reason meanwhile, so that nobody has to read the log for it.
                let id = &container.meta.id;
                let why = format!("{error:#}; if that stays so, remove it (`crictl rm -f {id}`)");
                container.set_state(State::Unknown { why });
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        })
    }

    /// Publishes that it has ended. Statuses say so from here on, even where a full disk does not
    /// take the record yet.
    pub(super) fn publish_end(&self, host: &Host, started: Option<Arc<Started>>, exited: Exited) {
        blocking(|| self.record_end(host, &exited));
        // A disk that has failed does not say when it was started, but that was known before.
        let started = started.or_else(|| self.state().started().cloned());
        METRICS.end(state::reason(&exited).0);
        self.enter(State::Exited { started, exited }, events::Kind::Stopped);
    }

    /// Writes how it ended, unless its shim has done so. It has not if it was killed or never ran.
    fn record_end(&self, host: &Host, exited: &Exited) {
        let path = host.layout.container(&self.meta.id).join(shim_layout::EXITED);
        match record::read::<Exited>(&path) {
            Ok(Found::Record(_)) => return,
            Ok(Found::Damaged) => tracing::warn!(
                container = %self.meta.id,
                "its {} is damaged and is written again: {}",
                shim_layout::EXITED,
                state::reason(exited).1
            ),
            Ok(Found::Absent) | Err(_) => {}
        }
        for record in host.layout.records_of(&self.meta.id, &self.meta.sandbox) {
            // As the shim does. A disk that takes nothing is what the reserve is for.
            let _ = record::sync(&record);
        }
        // Until the disk takes it, it is beside the socket, where shims of a full disk leave it: a
        // daemon that starts before that must not take the container for one that never ran.
        let beside = host.layout.container_state(&self.meta.id).join(shim_layout::EXITED);
        if !host.reserve.write(&path, exited)
            && let Err(error) = record::write(&beside, exited)
        {
            tracing::warn!(
                container = %self.meta.id,
                "how it ended is only in memory, since {} cannot be written: {error}",
                beside.display()
            );
        }
    }

    /// Connects to a living shim; false if the shim is about to exit.
    async fn connect(
        self: &Arc<Self>,
        host: &Arc<Host>,
        started: Arc<Started>,
    ) -> anyhow::Result<bool> {
        let directory = host.layout.container(&self.meta.id);
        let connection = match Connection::open(&host.layout.container_state(&self.meta.id)).await {
            Ok(connection) => Some(Arc::new(connection)),
            // Removing its socket is the last thing that a shim does, so that a missing socket
            // mostly means that its lock is about to become free.
            Err(_) if shim::ends_within(&directory, LEAVING).await? => return Ok(false),
            // Such as no free descriptor, which is about this daemon and not about the shim.
            Err(error) if !is_absent(&error) => return Err(error),
            Err(error) => {
                tracing::error!(
                    container = %self.meta.id,
                    "the socket of its shim is gone: the container keeps running, but exec and \
                     attach do not work, and a stop kills it without its stop signal: {error:#}"
                );
                None
            }
        };
        let running = State::Running { started, connection: connection.clone() };
        self.enter(running, events::Kind::Started);
        self.await_end(host, connection);
        Ok(true)
    }

    /// Waits for a launch that outlived the daemon that began it. It is given up after the same
    /// time without progress as any launch.
    ///
    /// The launch may also have succeeded, and only its record be lost. The shim then says so as
    /// soon as it is connected to, and the record is written again.
    async fn await_launch(&self, host: &Host) -> anyhow::Result<()> {
        let directory = host.layout.container(&self.meta.id);
        let socket_directory = host.layout.container_state(&self.meta.id);
        let launching = async {
            while matches!(self.read_state(host)?.0, Verdict::Launching) {
                tokio::time::sleep(shim::LAUNCHING).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            launched = shim::with_progress(launching, || self.stage(host)) => match launched {
                Ok(read) => read,
                Err(stalled) => {
                    self.force_end(host).await?;
                    // A shim that was still able to has recorded the end, and knows more about it.
                    if !matches!(self.read_state(host)?.0, Verdict::Exited(_)) {
                        let error = gave_up(&directory, &stalled).into();
                        blocking(|| self.record_end(host, &not_started(&error)));
                    }
                    Ok(())
                }
            },
            started = shim::greet(&socket_directory) => {
                self.restore_start(host, &started)
            }
        }
    }

    /// Writes the record of the start again, which was lost.
    fn restore_start(&self, host: &Host, started: &Started) -> anyhow::Result<()> {
        // A shim accepts connections as soon as it has written the record. That may have happened
        // since the directory was last read, and then nothing was lost.
        if !matches!(self.read_state(host)?.0, Verdict::Launching) {
            return Ok(());
        }
        let path = host.layout.container(&self.meta.id).join(shim_layout::STARTED);
        tracing::warn!(
            container = %self.meta.id,
            "{} was lost or damaged; it is written again, as the shim remembers it",
            path.display()
        );
        blocking(|| record::write(&path, started)).context("write when it was started")
    }

    /// Reconciles once the container has ended: when the shim closes its socket, or, without a
    /// socket, when the shim's lock is free.
    fn await_end(self: &Arc<Self>, host: &Arc<Host>, connection: Option<Arc<Connection>>) {
        let container = self.clone();
        let host = host.clone();
        tokio::spawn(async move {
            let directory = host.layout.container(&container.meta.id);
            match connection {
                Some(connection) => connection.closed().await,
                None => {
                    // A lock that cannot be read says nothing; to take that for the end would kill
                    // a container that runs.
                    while shim::is_alive(&directory).unwrap_or(true) {
                        tokio::time::sleep(TRY_LOCK).await;
                    }
                }
            }
            container.reconcile_later(&host);
        });
    }
}

/// The end of a container whose program never ran.
fn not_started(error: &anyhow::Error) -> Exited {
    let failure = error.downcast_ref::<Failure>().cloned();
    let failure = failure.unwrap_or_else(|| Failure::of_node(format!("{error:#}")));
    Exited { end: End::NotStarted(failure), at: now(), oom: false }
}

/// Whether the error of a connect says that there is no shim to connect to: no socket, nobody who
/// listens on it, or something else in its place (connect(2), unix(7)).
fn is_absent(error: &anyhow::Error) -> bool {
    let errno = error.chain().find_map(error::errno);
    matches!(
        errno,
        Some(
            Errno::ENOENT
                | Errno::ECONNREFUSED
                | Errno::ENOTDIR
                | Errno::ENOTSOCK
                | Errno::EPROTOTYPE
        )
    )
}

/// The error of a launch that was given up. It names what the launch was blocked on, which the
/// stage tells.
fn gave_up(dir: &Path, stalled: &Stalled) -> Error {
    let at = match stalled.0 {
        Some(Stage::Mount(index)) => {
            format!("opening mount source {}", mount_source(dir, index).unwrap_or_default())
        }
        Some(Stage::Label(_)) => "labelling the files of a mount".to_owned(),
        Some(Stage::Hook(_)) => "running a hook of its devices".to_owned(),
        Some(Stage::Copy(_)) => "copying the image's files for a volume".to_owned(),
        None => "setting up the container".to_owned(),
    };
    Error::new(Kind::DeadlineExceeded, format!("{stalled}: {at}"))
}

/// Which path of the host the mount with this index in the spec shows.
fn mount_source(dir: &Path, index: usize) -> Option<String> {
    let spec = read_spec(dir)?;
    let Program::Container(container) = spec.program else { return None };
    match &container.mounts.get(index)?.kind {
        MountKind::Bind { source, .. } => Some(source.display().to_string()),
        _ => None,
    }
}

/// Writes the PID namespace of a running container into the spec at `path`.
///
/// Only a process id names that namespace, and the kernel reuses process ids. The shim therefore
/// compares the start time of the process after it has opened the namespace, so that it never joins
/// another process that was given the same number.
fn join_target(path: &Path, target: Option<&Started>) -> anyhow::Result<()> {
    let Started { pid, start_time, .. } = *target.ok_or_else(|| {
        Error::precondition(
            "target_id: the container whose PID namespace is to be joined does not run",
        )
    })?;
    let mut spec: Spec = record::read(path)?.record().context("the spec is damaged")?;
    spec.namespaces.pid = Namespace::Join(format!("/proc/{pid}/ns/pid").into());
    spec.namespaces.target = Some(Target { pid, start_time });
    Ok(record::write(path, &spec)?)
}

/// What kind of failure an error is. A fault of the request or of the image (`InvalidArgument`: a
/// retry fails in the same way) is told apart from a fault of the node (`Internal`), because users
/// act on the difference.
pub(super) fn describe(error: anyhow::Error) -> Error {
    let Some(failure) = error.downcast_ref::<Failure>() else { return error.into() };
    let kind = match (Errno::from_raw(failure.errno), failure.fault) {
        // Whoever is at fault: the kubelet evicts pods when a disk is full.
        (Errno::ENOSPC | Errno::EDQUOT, _) => Kind::ResourceExhausted,
        (_, Fault::Request) => Kind::InvalidArgument,
        (_, Fault::Node) => Kind::Internal,
    };
    Error::of_step(kind, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_at_fault_and_a_full_disk_decide_the_code() {
        for (errno, fault, kind) in [
            (0, Fault::Request, Kind::InvalidArgument),
            (Errno::ENOENT as i32, Fault::Request, Kind::InvalidArgument),
            (Errno::ENOENT as i32, Fault::Node, Kind::Internal),
            (Errno::ENOSPC as i32, Fault::Node, Kind::ResourceExhausted),
            (Errno::EDQUOT as i32, Fault::Request, Kind::ResourceExhausted),
        ] {
            let failure = Failure { errno, fault, ..Failure::of_node("execve") };
            assert_eq!(describe(failure.into()).kind, kind, "{errno} {fault:?}");
        }
    }
}
