//! Inside the container: the ordered steps from clone to execve, and the channel that tells the monitor how far they came.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_shim::{
    protocol::MAX_PACKET,
    record::ResolvedUser,
    spec::{Container, Process, Program, Spec},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal},
    sys::wait::{WaitPidFlag, waitpid},
    unistd::{Pid, setsid},
};
use rustix::{
    fs::{Mode, OFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup, credentials,
    error::{Failure, Result, Step, failure},
    hooks::{Bundle, Status},
    mounts, namespaces,
    oci::Oci,
    passwd::{self, Login},
    rootfs,
    stdio::ChildStdio,
    sys,
};

/// What a child tells before it becomes its program. End-of-file, by close-on-exec, says that it did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The first process of the container, whose pidfd rides along, is another one than was forked.
    Init(i32),
    /// The namespaces are there; answered with `Proceed`. Sent where there are hooks.
    Created,
    Proceed,
    User(ResolvedUser),
    /// The master end of the container's terminal rides along.
    Terminal,
    Failed(Failure),
}

/// A close-on-exec pair: the monitor's end, the child's end.
pub(crate) fn channel() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).step("socketpair")
}

pub(crate) fn send(channel: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = berth_shim::protocol::encode(message);
    // The monitor can only be gone when it was killed; then nobody is there to be told.
    let _ = sendmsg(channel, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
}

/// The next message; `None` is end-of-file.
pub(crate) fn receive(channel: BorrowedFd<'_>) -> Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; MAX_PACKET];
    match receive_bytes(channel, &mut bytes)? {
        (0, _) => Ok(None),
        (length, fd) => Ok(Some((berth_shim::protocol::decode(&bytes[..length])?, fd))),
    }
}

/// The descriptor that comes with whatever is said.
pub(crate) fn receive_fd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    receive_bytes(socket, &mut [0; MAX_PACKET]).map(|(_, fd)| fd)
}

fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .step("read from the starting process")?
        .bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((length, fd))
}

/// The first process of the container, or of the runtime that makes it. Never returns.
pub(crate) fn run(dir: &Path, spec: &Spec, stdio: ChildStdio, filter: &[u8], channel: OwnedFd) -> ! {
    let failure = match (Oci::of(dir, spec), &spec.program) {
        (Some(oci), _) => oci.create(stdio, channel.as_fd()),
        (None, Program::Pause) => pause(spec, stdio, channel.as_fd()),
        (None, Program::Container(container)) => match enter(dir, spec, container, stdio, channel.as_fd()) {
            Ok(login) => credentials::execute(&container.process, &login, filter),
            Err(failure) => failure,
        },
    };
    send(channel.as_fd(), &Message::Failed(failure), None);
    std::process::exit(1)
}

fn enter(dir: &Path, spec: &Spec, container: &Container, stdio: ChildStdio, channel: BorrowedFd<'_>) -> Result<Login> {
    let user = spec.namespaces.user.as_ref();
    credentials::set_oom_score_adj(&container.process)?;
    namespaces::join(&spec.namespaces)?;
    cgroup::join_controllers(&spec.cgroups)?;
    let prepared = rootfs::prepare(dir, container, user)?;
    if let Some(user) = user {
        stdio.give_to(user.root_uid, user.root_gid);
        namespaces::enter_user(user, &spec.namespaces.pid, channel)?;
    }
    setsid().step("setsid")?;
    // Its root is the cgroup of this process at this moment.
    unshare(CloneFlags::CLONE_NEWCGROUP).step("unshare the cgroup namespace")?;
    // Over the host's root, which this process keeps seeing until it leaves it: no directory is needed for it, but by hooks.
    let (bundle, hooks) = (Bundle::of(spec), &container.hooks);
    let at = if hooks.is_empty() { PathBuf::from("/") } else { bundle.rootfs() };
    if !hooks.is_empty() {
        send(channel, &Message::Created, None);
        // The monitor runs hooks now, and does not go on when one fails.
        receive(channel)?.ok_or_else(|| failure("the monitor is gone", ""))?;
    }
    rootfs::assemble(&prepared, container, &at)?;
    let own_pid = std::process::id() as i32;
    bundle.run(&hooks.create_container, Status::Creating, own_pid)?;
    credentials::set_label(&container.process)?;
    rootfs::enter(&prepared, container)?;
    match stdio {
        ChildStdio::Terminal => open_terminal(channel)?,
        pipes => install(pipes)?,
    }
    let login = passwd::resolve(
        rootfs::open_path(Path::new("/"), OFlags::DIRECTORY).step_on("open", "/")?.as_fd(),
        &container.process.user,
    )?;
    ensure_cwd(&container.process)?;
    bundle.run(&hooks.start_container, Status::Created, own_pid)?;
    send(channel, &Message::User(login.user.clone()), None);
    Ok(login)
}

pub(crate) fn install(stdio: ChildStdio) -> Result<()> {
    let ChildStdio::Pipes { stdin, stdout, stderr } = stdio else { return Ok(()) };
    sys::replace_stdio(stdin, 0).step("install stdin")?;
    sys::replace_stdio(stdout, 1).step("install stdout")?;
    sys::replace_stdio(stderr, 2).step("install stderr")
}

/// The pty is made in the container's own devpts; its slave is taken by TIOCGPTPEER and never by a path (CVE-2025-52565).
fn open_terminal(channel: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).step_on("open", "/dev/pts/ptmx")?;
    unlockpt(&master).step("unlockpt")?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .step("TIOCGPTPEER")?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step_on("open", "/")?;
    let console = mounts::ensure_file(root.as_fd(), Path::new("/dev/console"))?;
    let bind = mounts::clone_tree(slave.as_fd(), false).step_on("clone mount for", "/dev/console")?;
    mounts::attach(bind.as_fd(), console.as_fd()).step_on("mount on", "/dev/console")?;
    send(channel, &Message::Terminal, Some(master.as_fd()));
    take_terminal(slave)
}

/// Makes a pty's slave end the controlling terminal and all three standard descriptors.
pub(crate) fn take_terminal(slave: OwnedFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(&slave).step("TIOCSCTTY")?;
    for number in 0..=2 {
        sys::replace_stdio(&slave, number).step("install the terminal")?;
    }
    Ok(())
}

/// A working directory that the image lacks is made, as containerd and Docker do.
fn ensure_cwd(process: &Process) -> Result<()> {
    match std::fs::create_dir_all(&process.cwd) {
        // A file in its place, or a read-only root: chdir will say so.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// PID 1 of a pod that shares its PID namespace: reaps what is left to it, and ends when it is told to.
fn pause(spec: &Spec, stdio: ChildStdio, channel: BorrowedFd<'_>) -> Failure {
    // The report pipe among them: the daemon reads it to its end.
    let quiet = || install(stdio);
    let prepared = namespaces::join(&spec.namespaces)
        .and_then(|()| cgroup::join_controllers(&spec.cgroups))
        .and_then(|()| match &spec.namespaces.user {
            Some(user) => namespaces::enter_user(user, &spec.namespaces.pid, channel),
            None => Ok(()),
        })
        .and_then(|()| quiet());
    if let Err(failure) = prepared {
        return failure;
    }
    send(channel, &Message::User(ResolvedUser::default()), None);
    let _ = nix::sys::prctl::set_name(c"berth-pause");
    // Closes the channel, which is what execve does for a program.
    if let Err(error) = sys::close_from(3).step("close_range") {
        return error;
    }
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_block().step("block signals") {
        return error;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
                {
                }
            }
            Ok(_) | Err(_) => std::process::exit(0),
        }
    }
}
