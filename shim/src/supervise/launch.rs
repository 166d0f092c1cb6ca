//! Launches a container: opens everything that has to exist before the fork, forks, and follows
//! the child until it has become the container's program.
//!
//! Berth makes the container itself, or another OCI runtime does (`[handlers.NAME]`). The two ways
//! part once, in `launch`, and meet again when there is a first process to keep.

use std::{
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_shim::{
    layout,
    record::{self, Report, ResolvedUser, Started},
    spec::{Hooks, Program, Spec},
};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use rustix::fs::OFlags;

use super::control;
use crate::{
    cgroup::{self, oom::OomWatch},
    error::{Result, Step, failure},
    hooks::{self, Bundle, Status},
    mount::{api::attach, inside::open_path},
    namespaces::join::{self, Joined},
    oci::Oci,
    process::{
        channel::{self, Message},
        child::{Child, start_time},
        report::report,
    },
    seccomp,
    start::{credentials, init::First},
    stdio::{child::ChildStdio, log::now, streams::Streams},
    steps::{At, begin},
    sys::Successor,
};

/// A container whose program runs, and what the monitor needs to keep it.
pub(super) struct Launched {
    pub init: Child,
    pub started: Started,
    /// The container's seccomp filter, for its execs.
    pub filter: Vec<u8>,
    pub oom: OomWatch,
    pub streams: Streams,
    /// Readable when a child has ended.
    pub children: SignalFd,
    pub listener: OwnedFd,
}

/// Starts the container of `spec`, whose directory is `dir`; `oci` is the other runtime that makes
/// it, if one does. Reports to the daemon once the program runs.
///
/// # Errors
/// The step that failed. Processes, mounts of hooks and the cgroup are left for the caller to end.
pub(super) fn launch(dir: &Path, spec: &Spec, oci: Option<&Oci<'_>>) -> Result<Launched> {
    // Keyrings are inherited over fork(2): the first process and all execs get this one.
    credentials::renew_keyring()?;
    let filter = seccomp::read(dir, &spec.program)?;
    begin(At::LaunchListen)?;
    // The daemon connects as soon as it has read the report, so the socket comes before it.
    let listener = control::listen(&spec.socket_dir)?;
    // SIGCHLD has to be blocked before there is a child, or its signal could be missed.
    let children = watch_children()?;
    // Counts from here on: what the cgroup counted before was not this container.
    let oom = OomWatch::open(&spec.cgroups);
    begin(At::LaunchClone)?;
    let Made { init, user, streams } = match oci {
        Some(oci) => make_by_runtime(spec, oci)?,
        None => make(dir, spec, &filter)?,
    };
    let started = Started {
        pid: init.pid.as_raw() as u32,
        start_time: start_time(init.pid)?,
        boot_id: boot_id()?,
        at: now(),
        user,
    };
    if let Some(hooks) = hooks::to_run(spec) {
        Bundle::of(spec).run_outside(&hooks.poststart, Status::Running, init.pid.as_raw())?;
    }
    // The record comes before the report: a daemon that dies in between finds it.
    begin(At::LaunchStarted)?;
    let path = dir.join(layout::STARTED);
    record::write(&path, &started).step_on("write", &path)?;
    begin(At::LaunchReport)?;
    report(&Report::Pid(started.pid));
    Ok(Launched { init, started, filter, oom, streams, children, listener })
}

/// A container whose first process runs its program.
struct Made {
    init: Child,
    user: ResolvedUser,
    streams: Streams,
}

/// Makes the container without the help of another runtime.
fn make(dir: &Path, spec: &Spec, filter: &[u8]) -> Result<Made> {
    let (mut streams, child_streams) = open_streams(spec)?;
    let cgroup = open_cgroup(dir, spec)?;
    let bundle = Bundle::of(spec);
    let hooks = hooks::to_run(spec);
    if let (Program::Container(container), Some(_)) = (&spec.program, hooks) {
        // Hooks look into it from the first one on, which runs right after the fork.
        bundle.make(container)?;
    }
    let flags = join::clone_flags(&spec.namespaces);
    let successor = Successor::new().step("mmap")?;
    let (child, channel) = Child::fork(flags, cgroup.as_ref().map(AsFd::as_fd), |channel| {
        First { dir, spec, filter, channel, successor: &successor }.run(child_streams)
    })?;
    // From here on only this process and the one just forked can write to the shared page.
    successor.keep_from_children().step("madvise")?;
    let user = await_start(channel.as_fd(), &mut streams, spec, || {
        let pid = successor.pid().unwrap_or(child.pid);
        hooks.map_or(Ok(()), |hooks| run_creation_hooks(&bundle, hooks, pid))
    })?;
    // With a new PID namespace in a user namespace, or one that was joined, the process that was
    // forked has ended by now and its sibling runs the program.
    let init = match successor.pid() {
        Some(pid) => Child::open(pid)?,
        None => child,
    };
    pin_pid_namespace(spec, init.pid)?;
    Ok(Made { init, user, streams })
}

/// Lets another OCI runtime make the container: a child prepares its root filesystem and becomes
/// the runtime's `create`; `start` follows when that has succeeded.
fn make_by_runtime(spec: &Spec, oci: &Oci<'_>) -> Result<Made> {
    let (mut streams, child_streams) = open_streams(spec)?;
    let console = oci.console()?;
    let joined = Joined::open(&spec.namespaces)?;
    // Not in the container's cgroup: the runtime puts there what belongs there, and sets up the
    // cgroup's device filter as well.
    let (create, channel) =
        Child::fork(Oci::clone_flags(), None, |channel| oci.create(child_streams, channel))?;
    // The runtime runs hooks itself, so there are none to run when namespaces have been created.
    let user = await_start(channel.as_fd(), &mut streams, spec, || Ok(()))?;
    let (init, terminal) = oci.created(&create, console)?;
    if let Some(joined) = &joined {
        joined.check(init.pid)?;
    }
    if let Some(terminal) = terminal {
        streams.add_terminal(terminal)?;
    }
    oci.start()?;
    Ok(Made { init, user, streams })
}

/// The streams of the container, and what its first process gets of them.
fn open_streams(spec: &Spec) -> Result<(Streams, ChildStdio)> {
    let mut streams = Streams::open(&spec.stdio)?;
    let child = match &spec.program {
        Program::Container(container) if !container.process.tty => streams.add_pipes()?,
        // The master end of a terminal arrives when the child has made it. The pause process has
        // no streams at all.
        Program::Container(_) | Program::Pause => ChildStdio::Terminal,
    };
    Ok((streams, child))
}

/// The cgroup of the v2 tree that the first process is to start in, if there is one.
fn open_cgroup(dir: &Path, spec: &Spec) -> Result<Option<File>> {
    let Some(directory) = &spec.cgroups.unified else { return Ok(None) };
    // Before any process is in the cgroup, so that none can open a device that it may not have.
    cgroup::restrict_devices(dir, directory)?;
    cgroup::open(directory).map(Some)
}

fn run_creation_hooks(bundle: &Bundle<'_>, hooks: &Hooks, pid: Pid) -> Result<()> {
    bundle.run_outside(&hooks.prestart, Status::Creating, pid.as_raw())?;
    bundle.run_outside(&hooks.create_runtime, Status::Creating, pid.as_raw())
}

/// A descriptor that is readable when a child has ended.
fn watch_children() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().step("block SIGCHLD")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).step("signalfd")
}

/// Reads the messages of the first process until it runs its program or fails. `created` is called
/// when its namespaces exist.
fn await_start(
    channel: BorrowedFd<'_>,
    streams: &mut Streams,
    spec: &Spec,
    created: impl Fn() -> Result<()>,
) -> Result<ResolvedUser> {
    let mut user = None;
    while let Some((message, fd)) = channel::receive(channel)? {
        match (message, fd) {
            // The user is the last thing that is told before the process becomes visible to others
            // in its PID namespace, who may trace it. What it says from then on may be theirs, so
            // nothing but a failure is believed.
            (message, _) if user.is_some() && !matches!(message, Message::Failed(_)) => {
                return Err(failure("an unexpected message from the starting process", ""));
            }
            (Message::Created, _) => {
                created()?;
                channel::send(channel, &Message::Proceed, None);
            }
            (Message::Proceed, _) => {}
            (Message::User(resolved), _) => user = Some(resolved),
            (Message::Terminal, Some(master)) => streams.add_terminal(master)?,
            (Message::Proc, Some(mount)) => pin_proc(spec, mount)?,
            (Message::Terminal | Message::Proc, None) => {
                return Err(failure("the starting process sent no descriptor", ""));
            }
            (Message::Failed(error), _) => return Err(error),
        }
    }
    // The channel is close-on-exec: end-of-file means that the program runs, or that the process
    // ended without a word.
    user.ok_or_else(|| failure("the starting process was killed before its program ran", ""))
}

/// Binds the PID namespace of the first process to a file, for the containers that will join it.
fn pin_pid_namespace(spec: &Spec, init: Pid) -> Result<()> {
    let Some(path) = &spec.namespaces.pin_pid else { return Ok(()) };
    File::create(path).step_on("create", path)?;
    let source = format!("/proc/{init}/ns/pid");
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .step_on("pin namespace at", path)
}

/// Mounts the /proc that the pause process made where the containers of the pod will find it.
fn pin_proc(spec: &Spec, proc: OwnedFd) -> Result<()> {
    let Some(path) = &spec.namespaces.pin_proc else { return Ok(()) };
    fs::create_dir_all(path).step_on("make", path)?;
    let at = open_path(path, OFlags::DIRECTORY).step_on("open", path)?;
    attach(proc.as_fd(), at.as_fd()).step_on("mount on", path)
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map(|id| id.trim().to_owned()).step_on("read", path)
}
