//! The process that stays: starts the container, then one poll loop over children, socket and streams until it ends.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::{
    layout,
    protocol::{self, Answer, Call, Packet, Request},
    record::{self, End, Exited, Found, Report, ResolvedUser, Started},
    spec::{Hooks, Namespace, Process, Program, Spec},
};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    cgroup::{self, OomWatch},
    error::{Result, Step, failure},
    exec::{self, Exec, Inside},
    hooks::{Bundle, Status},
    init::{self, Message},
    log::now,
    namespaces,
    oci::{self, Oci},
    run, seccomp,
    socket::{self, Received},
    stdio::Stdio,
    sys::{self, Fork},
};

/// What a poll can be about.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Children,
    Memory,
    Listener,
    Client(u64),
    ExecChannel(String),
    Output(usize),
    AttachedStdin,
    ContainerStdin,
}

struct Monitor<'a> {
    dir: &'a Path,
    spec: &'a Spec,
    filter: Vec<u8>,
    init: Pid,
    pidfd: OwnedFd,
    oom: OomWatch,
    stdio: Stdio,
    children: SignalFd,
    listener: OwnedFd,
    clients: BTreeMap<u64, OwnedFd>,
    next_client: u64,
    execs: BTreeMap<String, Running>,
}

/// An exec and the request that is to be told of it.
struct Running {
    exec: Exec,
    client: u64,
    request: u64,
}

/// Starts the container of `dir` and keeps it until it ended. Every way out leaves `exit.json` behind.
pub(crate) fn run(dir: &Path, spec: &Spec) -> Result<()> {
    match start(dir, spec) {
        Ok(monitor) => monitor.keep(),
        Err(error) => {
            if let Some(oci) = Oci::of(dir, spec) {
                oci.delete();
            }
            cgroup::kill_all(&spec.cgroups);
            while waitpid(None::<Pid>, None).is_ok() {}
            run_poststop(spec);
            let oom = OomWatch::open(&spec.cgroups).look();
            let exited = Exited { end: End::NotStarted(error.clone()), at: now(), oom };
            cgroup::remove(&spec.cgroups);
            // The report goes out even when the disk is full: the daemon then records what it was told.
            let _ = record::write_durable(&dir.join(layout::EXITED), &exited);
            run::report(&Report::Error(error.clone()));
            Err(error)
        }
    }
}

fn start<'a>(dir: &'a Path, spec: &'a Spec) -> Result<Monitor<'a>> {
    let filter = seccomp::read(dir)?;
    let listener = socket::open(&spec.socket_dir)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().step("block SIGCHLD")?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).step("signalfd")?;
    let tty = matches!(&spec.program, Program::Container(container) if container.process.tty);
    let (mut stdio, child_stdio) = match spec.program {
        Program::Container(_) => Stdio::open(&spec.stdio, tty)?,
        Program::Pause => (Stdio::open(&spec.stdio, true)?.0, crate::stdio::discard()?),
    };
    let (ours, theirs) = init::channel()?;
    let oci = Oci::of(dir, spec);
    let console = oci.as_ref().map(Oci::console).transpose()?.flatten();
    let oom = OomWatch::open(&spec.cgroups);
    let (flags, directory) = match (&oci, &spec.cgroups.unified) {
        // It joins and restricts what it makes.
        (Some(_), _) => (Oci::clone_flags(), None),
        (None, directory) => {
            if let Some(directory) = directory {
                cgroup::restrict_devices(dir, directory)?;
            }
            namespaces::join_pid(&spec.namespaces)?;
            (namespaces::clone_flags(&spec.namespaces), directory.as_deref().map(cgroup::open).transpose()?)
        }
    };
    let bundle = Bundle::of(spec);
    let hooks = hooks(spec);
    if let (Program::Container(container), Some(_)) = (&spec.program, hooks) {
        bundle.make(container)?;
    }
    let mut init = match sys::clone3(flags.bits(), directory.as_ref().map(AsFd::as_fd)).step("clone3")? {
        Fork::Child => {
            drop(ours);
            init::run(dir, spec, child_stdio, &filter, theirs)
        }
        Fork::Parent { pid, pidfd } => Init { pid, pidfd },
    };
    drop((theirs, child_stdio));
    let user = await_start(ours.as_fd(), &mut stdio, &mut init, |pid| {
        let Some(hooks) = hooks else { return Ok(()) };
        bundle.run_outside(&hooks.prestart, Status::Creating, pid)?;
        bundle.run_outside(&hooks.create_runtime, Status::Creating, pid)
    })?;
    if let Some(oci) = &oci {
        let (first, terminal) = oci.created(&init, console)?;
        init = first;
        terminal.map_or(Ok(()), |terminal| stdio.terminal(terminal))?;
        oci.start()?;
    } else {
        enter_pid_namespace(spec, init.pid, &init.pidfd)?;
    }
    let Init { pid: init, pidfd } = init;
    let started =
        Started { pid: init.as_raw() as u32, start_time: start_time(init)?, boot_id: boot_id()?, at: now(), user };
    if let Some(hooks) = hooks {
        bundle.run_outside(&hooks.poststart, Status::Running, init.as_raw())?;
    }
    let path = dir.join(layout::STARTED);
    record::write(&path, &started).step_on("write", &path)?;
    run::report(&Report::Pid(started.pid));
    let (clients, execs) = (BTreeMap::new(), BTreeMap::new());
    Ok(Monitor { dir, spec, filter, init, pidfd, oom, stdio, children, listener, clients, next_client: 0, execs })
}

/// Those of a container that has any.
fn hooks(spec: &Spec) -> Option<&Hooks> {
    match &spec.program {
        // Another runtime runs them itself.
        Program::Container(container) if container.oci_runtime.is_none() => {
            Some(&container.hooks).filter(|hooks| !hooks.is_empty())
        }
        Program::Container(_) | Program::Pause => None,
    }
}

/// The first process of the container.
pub(crate) struct Init {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// Reads the messages of `init` until it runs its program or fails; `created` is done when its namespaces are there.
fn await_start(
    channel: BorrowedFd<'_>,
    stdio: &mut Stdio,
    init: &mut Init,
    created: impl Fn(i32) -> Result<()>,
) -> Result<ResolvedUser> {
    let mut user = None;
    while let Some((message, fd)) = init::receive(channel)? {
        match (message, fd) {
            (Message::Init(pid), Some(pidfd)) => *init = Init { pid: Pid::from_raw(pid), pidfd },
            (Message::Created, _) => {
                created(init.pid.as_raw())?;
                init::send(channel, &Message::Proceed, None);
            }
            (Message::Proceed, _) => {}
            (Message::User(resolved), _) => user = Some(resolved),
            (Message::Terminal, Some(master)) => stdio.terminal(master)?,
            (Message::Init(_) | Message::Terminal, None) => return Err(failure("a descriptor did not arrive", "")),
            (Message::Failed(error), _) => return Err(error),
        }
    }
    user.ok_or_else(|| failure("killed before its program ran", ""))
}

fn run_poststop(spec: &Spec) {
    if let Some(hooks) = hooks(spec) {
        // The container has ended all the same, and there is nobody who could do anything about it.
        let _ = Bundle::of(spec).run_outside(&hooks.poststop, Status::Stopped, 0);
    }
}

/// Later children of this process are born in the container's PID namespace, so that an exec needs one fork only.
fn enter_pid_namespace(spec: &Spec, init: Pid, pidfd: &OwnedFd) -> Result<()> {
    if let Some(path) = &spec.namespaces.pin_pid {
        fs::File::create(path).step_on("create", path)?;
        let source = format!("/proc/{init}/ns/pid");
        mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .step_on("pin namespace at", path)?;
    }
    if spec.namespaces.pid == Namespace::New {
        match setns(pidfd, CloneFlags::CLONE_NEWPID) {
            // It ended already; no exec will be asked for.
            Err(Errno::ESRCH) => {}
            result => result.step("join the PID namespace for later children")?,
        }
    }
    Ok(())
}

/// Field 22 of proc_pid_stat(5), counted after the command name, which may hold anything.
fn start_time(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).step_on("read", &path)?;
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| failure("no start time in", &path))
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map(|id| id.trim().to_owned()).step_on("read", path)
}

impl Monitor<'_> {
    fn keep(mut self) -> Result<()> {
        let end = loop {
            for source in self.wait()? {
                match source {
                    Source::Children => {}
                    Source::Memory => drop(self.oom.look()),
                    Source::Listener => self.accept(),
                    Source::Client(client) => self.serve(client),
                    Source::ExecChannel(id) => self.exec_started(&id),
                    Source::Output(index) => self.stdio.copy_output(index),
                    Source::AttachedStdin => self.stdio.read_attached(),
                    Source::ContainerStdin => self.stdio.feed_container(),
                }
            }
            if let Some(end) = self.reap() {
                break end;
            }
        };
        self.finish(end)
    }

    /// Blocks until something is ready. Outputs come last and in falling order: one that ends changes the later indexes.
    fn wait(&self) -> Result<Vec<Source>> {
        let mut sources = vec![
            (Source::Children, self.children.as_fd(), PollFlags::POLLIN),
            (Source::Listener, self.listener.as_fd(), PollFlags::POLLIN),
        ];
        sources.extend(self.oom.fds().map(|fd| (Source::Memory, fd, PollFlags::POLLPRI)));
        sources.extend(self.clients.iter().map(|(id, fd)| (Source::Client(*id), fd.as_fd(), PollFlags::POLLIN)));
        let channels = self.execs.iter().filter_map(|(id, running)| Some((id, running.exec.channel.as_ref()?)));
        sources.extend(channels.map(|(id, fd)| (Source::ExecChannel(id.clone()), fd.as_fd(), PollFlags::POLLIN)));
        sources.extend(self.stdio.interests());
        let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(Vec::new()),
            result => result.step("poll")?,
        };
        let ready = sources.iter().zip(&fds).rev().filter(|(_, fd)| fd.any().unwrap_or(true));
        Ok(ready.map(|((source, ..), _)| source.clone()).collect())
    }

    fn accept(&mut self) {
        if let Some(client) = socket::accept(&self.listener) {
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
    }

    fn serve(&mut self, client: u64) {
        let Some(connection) = self.clients.get(&client) else { return };
        match socket::receive(connection) {
            Received::Request(request, fds) => self.handle(client, request, fds),
            Received::Garbage(error) => self.reply(client, 0, Err(error)),
            Received::Nothing => {}
            Received::Closed => self.disconnected(client),
        }
    }

    /// A daemon that is gone reads nothing that its execs say, and is told of no end: they go with all of their descendants.
    fn disconnected(&mut self, client: u64) {
        self.clients.remove(&client);
        for (id, _) in self.execs.iter().filter(|(_, running)| running.client == client) {
            // One that cannot be killed goes with the container.
            let _ = self.signal(Some(id), libc::SIGKILL);
        }
    }

    fn reply(&self, client: u64, id: u64, result: Result<Answer>) {
        if let Some(connection) = self.clients.get(&client) {
            socket::send(connection, &Packet::Reply { id, result });
        }
    }

    fn handle(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = match request.call {
            Call::Hello => Ok(Answer::Hello { version: protocol::VERSION }),
            Call::Exec { exec } => match self.exec(client, request.id, &exec, fds) {
                // Answered by `exec_started`.
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Call::Attach { stdin, stdout, stderr } => {
                let mut fds = fds.into_iter();
                let mut take = |wanted: bool| if wanted { fds.next() } else { None };
                let (stdin, stdout, stderr) = (take(stdin), take(stdout), take(stderr));
                self.stdio.attach(stdin, stdout, stderr).map(|()| Answer::Done)
            }
            Call::Signal { exec, signal } => self.signal(exec.as_deref(), signal).map(|()| Answer::Done),
            Call::Resize { width, height } => self.stdio.resize(width, height).map(|()| Answer::Done),
            Call::CloseStdin => {
                self.stdio.close_stdin();
                Ok(Answer::Done)
            }
            Call::ReopenLog => self.stdio.reopen_log().map(|()| Answer::Done),
        };
        self.reply(client, request.id, result);
    }

    fn exec(&mut self, client: u64, request: u64, id: &str, fds: Vec<OwnedFd>) -> Result<()> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) || self.execs.contains_key(id) {
            return Err(failure("not a free exec id:", id));
        }
        let path = self.request(id);
        let Found::Record(process) = record::read::<Process>(&path).step_on("read", &path)? else {
            return Err(failure("missing or damaged", &path));
        };
        exec::check(&process, &fds)?;
        if let Some(oci) = Oci::of(self.dir, self.spec) {
            let exec = oci.exec(id, &process, fds)?;
            self.execs.insert(id.to_owned(), Running { exec, client, request });
            return Ok(());
        }
        let user = self.spec.namespaces.user.as_ref();
        let inside = Inside { init: self.pidfd.as_fd(), cgroups: &self.spec.cgroups, user, filter: &self.filter };
        let exec = exec::start(&inside, id, &process, fds)?;
        self.execs.insert(id.to_owned(), Running { exec, client, request });
        Ok(())
    }

    /// Where the daemon describes an exec.
    fn request(&self, id: &str) -> PathBuf {
        self.dir.join(layout::EXEC).join(format!("{id}.json"))
    }

    /// The channel of an exec has something to say, which for a program that runs is end-of-file.
    fn exec_started(&mut self, id: &str) {
        let Some(running) = self.execs.get_mut(id) else { return };
        let Some(channel) = running.exec.channel.take() else { return };
        let result = match init::receive(channel.as_fd()) {
            Ok(None) => Ok(Answer::Pid(running.exec.pid.as_raw() as u32)),
            Ok(Some((Message::Failed(error), _))) | Err(error) => Err(error),
            Ok(Some(_)) => {
                running.exec.channel = Some(channel);
                return;
            }
        };
        let (client, request) = (running.client, running.request);
        self.reply(client, request, result);
    }

    fn signal(&self, exec: Option<&str>, signal: i32) -> Result<()> {
        let pidfd = match exec {
            None => match Oci::of(self.dir, self.spec).map(|oci| oci.kill(signal)) {
                Some(Ok(())) => return Ok(()),
                // It may have ended in between, or its runtime be gone.
                Some(Err(_)) | None => &self.pidfd,
            },
            Some(id) => {
                let exec = &self.execs.get(id).ok_or_else(|| failure("no such exec:", id))?.exec;
                if let Some(directory) = exec.cgroup.as_ref().filter(|_| signal == libc::SIGKILL) {
                    return cgroup::kill_tree(directory).step_on("kill", directory);
                }
                if let Some(pid_file) = exec.behind.as_ref().filter(|_| signal == libc::SIGKILL) {
                    oci::kill_behind(pid_file);
                }
                &exec.pidfd
            }
        };
        match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
            // Already gone, which the sender learns from the exit.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.step("send signal"),
        }
    }

    /// Collects every child that ended; the first process' end is the container's.
    fn reap(&mut self) -> Option<End> {
        while matches!(self.children.read_signal(), Ok(Some(_))) {}
        let mut end = None;
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            let (pid, how) = match status {
                WaitStatus::Exited(pid, code) => (pid, End::Code(code)),
                WaitStatus::Signaled(pid, signal, _) => (pid, End::Signal(signal as i32)),
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if pid == self.init {
                end = Some(how);
            } else {
                self.exec_ended(pid, &how);
            }
        }
        end
    }

    fn exec_ended(&mut self, pid: Pid, end: &End) {
        let Some(id) = self.execs.iter().find(|(_, running)| running.exec.pid == pid).map(|(id, _)| id.clone()) else {
            return;
        };
        // Whether it ever ran comes before how it ended.
        self.exec_started(&id);
        let Some(running) = self.execs.remove(&id) else { return };
        match self.clients.get(&running.client) {
            Some(connection) => socket::send(connection, &Packet::ExecExited { exec: id, code: end.code() }),
            // The daemon that wrote it is gone.
            None => drop(fs::remove_file(self.request(&id))),
        }
        if let Some(pid_file) = &running.exec.behind {
            // With the request that was made of it; both go with the container at the latest.
            let _ = fs::remove_file(pid_file);
            let _ = fs::remove_file(pid_file.with_extension("oci.json"));
        }
        if let Some(directory) = &running.exec.cgroup {
            // Busy while a daemonised child lives on; the container's end removes it then.
            let _ = fs::remove_dir(directory);
        }
    }

    /// The last acts: nothing of the container lives on, everything it said is logged, how it ended is on disk.
    fn finish(mut self, end: End) -> Result<()> {
        let oom = self.oom.look();
        if let Some(oci) = Oci::of(self.dir, self.spec) {
            oci.delete();
        }
        cgroup::kill_all(&self.spec.cgroups);
        while matches!(waitpid(None::<Pid>, None), Ok(_) | Err(Errno::EINTR)) {}
        self.stdio.drain();
        run_poststop(self.spec);
        cgroup::remove(&self.spec.cgroups);
        let path = self.dir.join(layout::EXITED);
        record::write_durable(&path, &Exited { end, at: now(), oom }).step_on("write", &path)
    }
}
