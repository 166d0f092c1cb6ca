//! The monitor: the process of the shim that lives as long as its container. One poll loop over
//! children, the daemon's connections and the container's streams, until the container has ended
//! and its end is on record.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use berth_shim::{
    layout,
    protocol::{self, Call, Packet, Request, Response},
    record::{self, End, Exited, Report, Started},
    spec::{Program, Spec},
    version,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    control::{self, Received},
    launch::{Launched, launch},
};
use crate::{
    cgroup::{self, oom::OomWatch},
    error::{Failure, Result, Step, failure},
    hooks::{self, Bundle, Status},
    oci::{self, Oci},
    process::{
        channel::{self, Message},
        child::Exec,
        report::report,
        request,
    },
    start::exec::{self, Inside},
    stdio::{log::now, streams::Interest},
    steps::{At, begin},
    sys,
};

/// What became ready in the poll loop.
#[derive(Clone, Debug)]
enum Source {
    /// A child ended.
    Children,
    /// The kernel counted a memory event of the cgroup.
    Memory,
    Listener,
    Client(u64),
    /// The channel of an exec whose program does not run yet.
    ExecChannel(String),
    Stream(Interest),
}

struct Monitor<'a> {
    dir: &'a Path,
    spec: &'a Spec,
    /// The other runtime that made the container, if one did.
    oci: Option<Oci<'a>>,
    container: Launched,
    clients: BTreeMap<u64, OwnedFd>,
    next_client: u64,
    execs: BTreeMap<String, Running>,
}

/// An exec, and the request that it answers.
struct Running {
    exec: Exec,
    client: u64,
    request: u64,
}

/// Starts the container of `dir` and keeps it until it has ended. Every way out of here leaves
/// `exit.json` behind.
pub(crate) fn run(dir: &Path, spec: &Spec) -> Result<()> {
    let oci = Oci::of(dir, spec);
    match launch(dir, spec, oci.as_ref()) {
        Ok(container) => {
            let clients = BTreeMap::new();
            let execs = BTreeMap::new();
            Monitor { dir, spec, oci, container, clients, next_client: 0, execs }.keep()
        }
        Err(error) => {
            end_failed_launch(dir, spec, oci.as_ref(), &error);
            Err(error)
        }
    }
}

/// Ends whatever a failed launch has left, and tells the daemon why it failed.
fn end_failed_launch(dir: &Path, spec: &Spec, oci: Option<&Oci<'_>>, error: &Failure) {
    if let Some(oci) = oci {
        oci.delete();
    }
    cgroup::kill_all(&spec.cgroups);
    while waitpid(None::<Pid>, None).is_ok() {}
    run_poststop(spec);
    // Read before the cgroup goes: a start can fail because its memory limit is too low.
    let oom = OomWatch::open(&spec.cgroups).read();
    let exited = Exited { end: End::NotStarted(error.clone()), at: now(), oom };
    cgroup::remove(&spec.cgroups);
    // The report goes out even when nothing can be written: the daemon then records the end that
    // it was told.
    let _ = record_end(dir, spec, &exited);
    report(&Report::Error(error.clone()));
}

fn run_poststop(spec: &Spec) {
    if let Some(hooks) = hooks::to_run(spec) {
        // The OCI runtime specification wants a failure logged and ignored. The container has
        // ended either way, and the shim has no log of its own.
        let _ = Bundle::of(spec).run_outside(&hooks.poststop, Status::Stopped, 0);
    }
}

impl Monitor<'_> {
    fn keep(mut self) -> Result<()> {
        self.container.streams.begin();
        let end = loop {
            let limit = self.container.streams.hold();
            self.serve_ready(limit)?;
            // After the other sources, so that a client that connected before the end is still
            // answered.
            if let Some(end) = self.reap() {
                break end;
            }
        };
        self.finish(end)
    }

    /// Blocks until something is ready or `limit` is over, and serves what is. Returns whether
    /// something was.
    fn serve_ready(&mut self, limit: Option<Duration>) -> Result<bool> {
        let sources = self.wait(limit)?;
        let any = !sources.is_empty();
        for source in sources {
            match source {
                // Children are reaped by the caller, once for all of them.
                Source::Children => {}
                Source::Memory => drop(self.container.oom.read()),
                Source::Listener => self.accept(),
                Source::Client(client) => self.serve(client),
                Source::ExecChannel(id) => self.exec_started(&id),
                Source::Stream(interest) => self.container.streams.serve(interest),
            }
        }
        Ok(any)
    }

    /// Blocks until something is ready, or `limit` is over. Streams come first and outputs in
    /// falling order: an output that has ended is removed, which changes the indexes behind it.
    fn wait(&self, limit: Option<Duration>) -> Result<Vec<Source>> {
        let container = &self.container;
        let mut sources = vec![
            (Source::Children, container.children.as_fd(), PollFlags::POLLIN),
            (Source::Listener, container.listener.as_fd(), PollFlags::POLLIN),
        ];
        // cgroup files signal a change with POLLPRI, never with POLLIN (kernfs_generic_poll).
        sources.extend(container.oom.fds().map(|fd| (Source::Memory, fd, PollFlags::POLLPRI)));
        sources.extend(
            self.clients
                .iter()
                .map(|(id, fd)| (Source::Client(*id), fd.as_fd(), PollFlags::POLLIN)),
        );
        sources.extend(self.execs.iter().filter_map(|(id, running)| {
            let channel: BorrowedFd<'_> = running.exec.channel.as_ref()?.as_fd();
            Some((Source::ExecChannel(id.clone()), channel, PollFlags::POLLIN))
        }));
        let streams = container.streams.interests();
        sources.extend(streams.map(|(interest, fd, flags)| (Source::Stream(interest), fd, flags)));
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        // A limit that is too long for poll(2) does not occur.
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, limit) {
            Err(Errno::EINTR) => return Ok(Vec::new()),
            result => result.step("poll")?,
        };
        // Events that nix does not know count as ready: the read that follows finds out.
        let ready = sources.iter().zip(&fds).rev().filter(|(_, fd)| fd.any().unwrap_or(true));
        Ok(ready.map(|((source, ..), _)| source.clone()).collect())
    }

    fn accept(&mut self) {
        if let Some(client) = control::accept(&self.container.listener) {
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
    }

    fn serve(&mut self, client: u64) {
        let Some(connection) = self.clients.get(&client) else { return };
        match control::receive(connection) {
            Received::Request(request, fds) => self.handle(client, request, fds),
            Received::Unknown(id, error) => self.reply(client, id, Err(error)),
            Received::Nothing => {}
            Received::Closed => self.disconnected(client),
        }
    }

    /// Kills the execs of a daemon that is gone, with all of their descendants: nobody reads their
    /// output any more or would hear of their end.
    fn disconnected(&mut self, client: u64) {
        self.clients.remove(&client);
        for (id, _) in self.execs.iter().filter(|(_, running)| running.client == client) {
            // One that cannot be killed now goes with the container.
            let _ = self.signal(Some(id), libc::SIGKILL);
        }
    }

    fn reply(&self, client: u64, id: u64, result: Result<Response>) {
        if let Some(connection) = self.clients.get(&client) {
            control::send(connection, &Packet::Reply { id, result });
        }
    }

    fn handle(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let streams = &mut self.container.streams;
        let result = match request.call {
            Call::Hello => Ok(Response::Hello {
                version: version::VERSION,
                oldest: Some(version::OLDEST),
                started: Some(self.started_in_brief()),
            }),
            Call::Exec { exec } => match self.exec(client, request.id, &exec, fds) {
                // `exec_started` replies when the program runs or has failed to.
                Ok(()) => return,
                Err(error) => Err(self.cause(error)),
            },
            Call::Attach { stdin, stdout, stderr } => {
                let mut fds = fds.into_iter();
                let stdin = stdin.then(|| fds.next()).flatten();
                let stdout = stdout.then(|| fds.next()).flatten();
                let stderr = stderr.then(|| fds.next()).flatten();
                streams.attach(stdin, stdout, stderr).map(|()| Response::Done)
            }
            Call::Signal { exec, signal } => {
                self.signal(exec.as_deref(), signal).map(|()| Response::Done)
            }
            Call::Resize { width, height } => {
                streams.resize(width, height).map(|()| Response::Done)
            }
            Call::CloseStdin => {
                streams.close_stdin();
                Ok(Response::Done)
            }
            Call::ReopenLog => streams.reopen_log().map(|()| Response::Done),
        };
        self.reply(client, request.id, result);
    }

    fn exec(&mut self, client: u64, call: u64, id: &str, fds: Vec<OwnedFd>) -> Result<()> {
        // The id becomes the name of a cgroup directory and of files.
        if id.is_empty()
            || !id.bytes().all(|byte| byte.is_ascii_alphanumeric())
            || self.execs.contains_key(id)
        {
            return Err(failure("not a free exec id:", id));
        }
        let mut fds = fds.into_iter();
        let request_file = fds.next().ok_or_else(|| failure("an exec without its request", ""))?;
        let exec_request = request::read(request_file)?;
        let fds: Vec<OwnedFd> = fds.collect();
        request::check(&exec_request, &fds)?;
        let Program::Container(container) = &self.spec.program else {
            return Err(failure("the pause process of a pod takes no exec", ""));
        };
        let process = exec_request.merge(&container.process);
        let exec = if let Some(oci) = &self.oci {
            oci::exec::start(oci, id, self.container.init.pid, &process, fds)?
        } else {
            let inside = Inside {
                init: self.container.init.pidfd.as_fd(),
                cgroups: &self.spec.cgroups,
                user: self.spec.namespaces.user.as_ref(),
                filter: &self.container.filter,
            };
            exec::start(&inside, id, &process, fds)?
        };
        self.execs.insert(id.to_owned(), Running { exec, client, request: call });
        Ok(())
    }

    /// What `started.json` says, as far as it fits into a packet.
    fn started_in_brief(&self) -> Started {
        let mut started = self.container.started.clone();
        started.user.groups.truncate(MAX_GROUPS);
        started
    }

    /// Reads the channel of an exec. End-of-file means that its program runs.
    fn exec_started(&mut self, id: &str) {
        let Some(running) = self.execs.get_mut(id) else { return };
        let Some(channel) = running.exec.channel.take() else { return };
        let result = match channel::receive(channel.as_fd()) {
            Ok(None) => Ok(Response::Pid(running.exec.current_pid().as_raw() as u32)),
            Ok(Some((Message::Failed(error), _))) | Err(error) => Err(error),
            Ok(Some(_)) => {
                running.exec.channel = Some(channel);
                return;
            }
        };
        let client = running.client;
        let request = running.request;
        self.reply(client, request, result.map_err(|error| self.cause(error)));
    }

    /// Why an exec failed: `error`, unless the container ended meanwhile. Then the kernel has many
    /// errors that say nothing about the command, such as ENOMEM from fork(2) into a PID namespace
    /// without its first process (pid_namespaces(7)) and ESRCH from setns(2). A process gives up
    /// its namespaces before it can be waited for, so they tell earlier than waitpid(2).
    fn cause(&self, error: Failure) -> Failure {
        let path = format!("/proc/{}/ns/mnt", self.container.init.pid);
        match rustix::fs::readlink(path, Vec::new()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => failure(protocol::ENDED, ""),
            _ => error,
        }
    }

    fn signal(&self, exec: Option<&str>, signal: i32) -> Result<()> {
        let sent = match exec {
            None => match self.oci.as_ref().map(|oci| oci.kill(signal)) {
                Some(Ok(())) => return Ok(()),
                // The runtime refuses when the container has just ended, and its program may be
                // gone from the host. The signal itself works without it.
                Some(Err(_)) | None => {
                    sys::pidfd_send_signal(self.container.init.pidfd.as_fd(), signal)
                }
            },
            Some(id) => {
                let exec = &self.execs.get(id).ok_or_else(|| failure("no such exec:", id))?.exec;
                if let Some(directory) = exec.cgroup.as_ref().filter(|_| signal == libc::SIGKILL) {
                    return cgroup::kill_tree(directory).step_on("kill", directory);
                }
                if let Some(pid_file) = exec.pid_file.as_ref().filter(|_| signal == libc::SIGKILL) {
                    oci::exec::kill_program(pid_file);
                }
                exec.signal(signal)
            }
        };
        match sent {
            // It has ended already, which the sender learns from the exit.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.step("send signal"),
        }
    }

    /// Collects every child that has ended. The end of the first process is the container's.
    fn reap(&mut self) -> Option<End> {
        // One signalfd read can stand for many children (signal(7): standard signals do not
        // queue), so the descriptor is emptied and waitpid(2) exec_request until there is no more.
        while matches!(self.container.children.read_signal(), Ok(Some(_))) {}
        let mut end = None;
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            let (pid, how) = match status {
                WaitStatus::Exited(pid, code) => (pid, End::Code(code)),
                WaitStatus::Signaled(pid, signal, _) => (pid, End::Signal(signal as i32)),
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if pid == self.container.init.pid {
                end = Some(how);
            } else {
                self.exec_ended(pid, &how);
            }
        }
        end
    }

    fn exec_ended(&mut self, pid: Pid, end: &End) {
        let mut execs = self.execs.iter_mut();
        let Some((id, running)) = execs.find(|(_, running)| running.exec.is(pid)) else {
            // An orphan of the container or of a hook, which came here because this process is a
            // subreaper.
            return;
        };
        if running.exec.current_pid() != pid {
            // The process that prepared the exec has ended and left its place to a sibling. Its
            // number may be given to another process from now on.
            running.exec.pid = running.exec.current_pid();
            // A signal that killed it on the way out was meant for the exec.
            if let End::Signal(signal) = end {
                let _ = running.exec.signal(*signal);
            }
            return;
        }
        let id = id.clone();
        // The daemon waits for the reply to its request before it looks at an end.
        self.exec_started(&id);
        let Some(running) = self.execs.remove(&id) else { return };
        if let Some(connection) = self.clients.get(&running.client) {
            control::send(connection, &Packet::ExecExited { exec: id, code: end.code() });
        }
        if let Some(pid_file) = &running.exec.pid_file {
            // These files are in the container's state directory, which removal deletes at the
            // latest.
            let _ = fs::remove_file(pid_file);
            let _ = fs::remove_file(pid_file.with_extension("oci.json"));
        }
        if let Some(directory) = &running.exec.cgroup {
            // EBUSY while a daemonised child lives on. The container's end removes it then.
            let _ = fs::remove_dir(directory);
        }
    }

    /// The last acts: nothing of the container lives on, all of its output is in the log, and its
    /// end is on disk.
    fn finish(mut self, end: End) -> Result<()> {
        let at = now();
        // Before the runtime and the cgroup's removal take the counters away.
        let oom = self.container.oom.read();
        if let Some(oci) = &self.oci {
            oci.delete();
        }
        begin(At::EndKill)?;
        // Without a PID namespace of its own the container's other processes outlive the first.
        cgroup::kill_all(&self.spec.cgroups);
        while matches!(waitpid(None::<Pid>, None), Ok(_) | Err(Errno::EINTR)) {}
        // All writers are dead, so what is in the pipes now is all there will be.
        self.deliver()?;
        run_poststop(self.spec);
        begin(At::EndCgroup)?;
        cgroup::remove(&self.spec.cgroups);
        begin(At::EndRecord)?;
        record_end(self.dir, self.spec, &Exited { end, at, oom })
    }

    /// Passes on all that is left of the output. Where that has to wait for clients, the daemon is
    /// served meanwhile, since it is the daemon that attaches them.
    fn deliver(&mut self) -> Result<()> {
        while self.container.streams.drain() {
            let limit = self.container.streams.hold().unwrap_or(CLIENT_PATIENCE);
            let any = self.serve_ready(Some(limit))?;
            // Empties the descriptor that tells of children.
            self.reap();
            if !any && self.container.streams.hold().is_none() {
                self.container.streams.abandon_clients();
            }
        }
        self.container.streams.finish();
        Ok(())
    }
}

/// Leaves `exit.json` in the container's directory. Where the disk takes nothing, it goes beside
/// the socket, which is in memory, and the daemon fetches it from there.
fn record_end(dir: &Path, spec: &Spec, exited: &Exited) -> Result<()> {
    for path in &spec.records {
        // The container may be about to be removed, and then nobody asks for its end. A disk that
        // takes nothing is dealt with below.
        let _ = record::sync(path);
    }
    if record::write_durable(&dir.join(layout::EXITED), exited).is_ok() {
        return Ok(());
    }
    let path = spec.socket_dir.join(layout::EXITED);
    record::write(&path, exited).step_on("write", &path)
}

/// How long the end of a container waits for a client that takes nothing.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How many groups of `started.json` are told by socket: with all else in it, a packet has room for
/// so many.
const MAX_GROUPS: usize = 128;
