//! Containers that another OCI runtime makes, such as runc or crun. The shim prepares what the
//! runtime will mount, drives it by its command line, and keeps the container as it keeps its own.

mod config;
pub(crate) mod exec;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_shim::{
    layout,
    spec::{Container, OciRuntime, Process, Program, Spec},
};
use nix::{
    sched::CloneFlags,
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, alarm, setsid},
};
use rustix::{
    fs::FileType,
    net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socket_with},
    process::{PidfdFlags, pidfd_open},
};
use serde_json::Value;

use crate::{
    error::{Failure, Result, Step, failure},
    mount::{self, inside::open_path},
    passwd,
    process::{
        channel::{self, Message},
        child::Child,
        limits, socket, wait,
    },
    root::rootfs::{self, Prepared},
    stdio::child::{ChildStdio, discard, install_first},
    sys,
};

/// The runtime's own environment has nothing but this PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Files in the container's directory, which is the OCI bundle.
const CONFIG: &str = "config.json";
const PID: &str = "oci.pid";
const LOG: &str = "oci.log";
/// The directory where the sources of the container's mounts are, in the mount namespace of
/// `create` only.
const SOURCES: &str = "mounts";
/// The socket for the terminal. Runtimes work in the bundle, so this name is enough; the whole path
/// may be longer than the 108 bytes of a socket address.
const CONSOLE: &str = "console.sock";
/// How long each call of the runtime may take. That is less than the 30 s that the daemon waits for
/// a launch, so that a runtime that hangs is killed by the process that has started it, and named.
const TIMEOUT: Duration = Duration::from_secs(25);
/// How much of the runtime's log is read, in bytes. Its last line says why it failed.
const TAIL: u64 = 4096;

/// A container and the runtime that makes it.
pub(crate) struct Oci<'a> {
    dir: &'a Path,
    spec: &'a Spec,
    container: &'a Container,
    runtime: &'a OciRuntime,
}

impl<'a> Oci<'a> {
    /// `None` if the shim makes the container itself.
    pub(crate) fn of(dir: &'a Path, spec: &'a Spec) -> Option<Self> {
        let Program::Container(container) = &spec.program else { return None };
        container.oci_runtime.as_ref().map(|runtime| Self { dir, spec, container, runtime })
    }

    /// The namespaces that the process of `create` needs. Those of the container are made by the
    /// runtime.
    pub(crate) fn clone_flags() -> CloneFlags {
        CloneFlags::CLONE_NEWNS
    }

    /// The socket on which the runtime hands over the container's terminal, if that has one.
    pub(crate) fn console(&self) -> Result<Option<OwnedFd>> {
        if !self.container.process.tty {
            return Ok(None);
        }
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .step("socket")?;
        socket::bind_in(&socket, self.dir, CONSOLE)?;
        listen(&socket, 1).step("listen")?;
        Ok(Some(socket))
    }

    /// Becomes the runtime's `create`. To be called in a process and a mount namespace of its own.
    /// Returns only a failure.
    pub(crate) fn create(&self, stdio: ChildStdio, channel: BorrowedFd<'_>) -> Failure {
        match self.prepare(stdio, channel) {
            Err(failure) => failure,
            Ok(()) => {
                let bundle = self.dir.display().to_string();
                let pid = self.dir.join(PID).display().to_string();
                let mut args = vec!["create", "--bundle", &bundle, "--pid-file", &pid];
                if self.container.process.tty {
                    args.extend(["--console-socket", CONSOLE]);
                }
                args.push(&self.spec.id);
                self.execute(&args)
            }
        }
    }

    fn prepare(&self, stdio: ChildStdio, channel: BorrowedFd<'_>) -> Result<()> {
        // SIGALRM ends this process if a volume does not answer. Nothing else would: it is not in
        // the container's cgroup, which the daemon kills when it gives a launch up.
        alarm::set(TIMEOUT.as_secs() as u32);
        let process = &self.container.process;
        let prepared = rootfs::prepare(self.dir, self.container, None, None)?;
        // Detached mounts have no path, and a runtime takes its root and its mounts by path.
        let rootfs = self.dir.join(layout::ROOTFS);
        let sources = self.dir.join(SOURCES);
        attach(&prepared, &rootfs, &sources)?;
        let login = passwd::resolve(prepared.root.as_fd(), &process.user)?;
        // The runtime sets limits and the OOM score once more, and fails if it may not. So they are
        // set here first, which never fails for that reason, and the runtime is told what is in
        // force.
        limits::set_oom_score_adj(process)?;
        let score = fs::read_to_string("/proc/self/oom_score_adj")
            .step_on("read", "/proc/self/oom_score_adj")?;
        let resolved = config::Resolved {
            limits: limits::set_all(process)?,
            oom_score_adj: score.trim().parse().unwrap_or_default(),
            seccomp: seccomp(self.dir, process)?,
            login: &login,
            rootfs: &rootfs,
            sources: &sources,
        };
        let config = config::config(self.spec, self.container, self.runtime, &resolved);
        let path = self.dir.join(CONFIG);
        write_private(&path, &config)?;
        // A session of its own, so that the container's first process is in none of the shim's.
        setsid().step("setsid")?;
        // The runtime hands its own streams on, unless it makes a terminal for the container.
        let streams = match stdio {
            ChildStdio::Pipes { .. } => stdio,
            ChildStdio::Terminal => discard()?,
        };
        install_first(streams)?;
        channel::send(channel, &Message::User(login.user), None);
        // The runtime's own time is limited by `created`.
        alarm::cancel();
        Ok(())
    }

    /// The runtime with the options that come before every verb.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime.path);
        command.env_clear().env("PATH", PATH).arg("--root").arg(&self.runtime.state);
        command.arg("--log").arg(self.dir.join(LOG)).args(["--log-format", "json"]).args(args);
        command
    }

    /// Becomes the runtime. Returns only a failure.
    fn execute(&self, args: &[&str]) -> Failure {
        let error = self.command(args).exec();
        let errno = error.raw_os_error().unwrap_or_default();
        Failure { errno, ..failure("execute the OCI runtime", &self.runtime.path) }
    }

    /// Runs the runtime to its end.
    fn run(&self, args: &[&str]) -> Result<()> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().step_on("execute the OCI runtime", &self.runtime.path)?;
        if !wait::ends_within(&child, TIMEOUT, |_| {})? {
            // ESRCH if it has ended just now. Either way it has to be waited for.
            let _ = child.kill();
            let _ = child.wait();
            return Err(self.hangs(args[0]));
        }
        let status = child.wait().step("wait for the OCI runtime")?;
        if status.success() { Ok(()) } else { Err(self.failed(args[0])) }
    }

    fn hangs(&self, verb: &str) -> Failure {
        failure(
            format!("OCI runtime: {verb}: no end within {} s:", TIMEOUT.as_secs()),
            &self.runtime.path,
        )
    }

    /// The failure of `verb`, with what the runtime has logged about it.
    fn failed(&self, verb: &str) -> Failure {
        let said = last_message(&self.dir.join(LOG))
            .unwrap_or_else(|| "it says nothing about why".to_owned());
        failure(format!("OCI runtime: {verb}: {said}:"), &self.runtime.path)
    }

    /// Waits for the end of `create`, which `process` has become. Returns the container's first
    /// process, which is a child of this one by then (it is a subreaper), and its terminal.
    pub(crate) fn created(
        &self,
        process: &Child,
        console: Option<OwnedFd>,
    ) -> Result<(Child, Option<OwnedFd>)> {
        let begun = Instant::now();
        while !wait::is_ready(process.pidfd.as_fd(), TIMEOUT)? {
            if begun.elapsed() >= TIMEOUT {
                let _ = sys::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL);
                return Err(self.hangs("create"));
            }
        }
        if !matches!(
            waitpid(process.pid, None).step("wait for the OCI runtime")?,
            WaitStatus::Exited(_, 0)
        ) {
            return Err(self.failed("create"));
        }
        let path = self.dir.join(PID);
        let text = fs::read_to_string(&path).step_on("read", &path)?;
        let pid: i32 = text.trim().parse().map_err(|_| failure("not a process id in", &path))?;
        let raw = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| failure("not a process id in", &path))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).step("pidfd_open")?;
        let terminal = console.map(|socket| {
            let connection =
                accept_with(&socket, SocketFlags::CLOEXEC).step("accept the terminal")?;
            // The text of the message is the name of the terminal, which nobody needs.
            channel::receive_fd(connection.as_fd())?
                .ok_or_else(|| failure("the OCI runtime sent no terminal", ""))
        });
        Ok((Child { pid: Pid::from_raw(pid), pidfd }, terminal.transpose()?))
    }

    /// Lets the first process run its program.
    pub(crate) fn start(&self) -> Result<()> {
        self.run(&["start", &self.spec.id])
    }

    /// Signals the first process.
    pub(crate) fn kill(&self, signal: i32) -> Result<()> {
        self.run(&["kill", &self.spec.id, &signal.to_string()])
    }

    /// Deletes the container in the runtime's eyes, whatever state it is in.
    pub(crate) fn delete(&self) {
        // An error as a rule means that it was never made. Whatever state the runtime still has is
        // deleted by the daemon's `remove`.
        let _ = self.run(&["delete", "--force", &self.spec.id]);
    }
}

/// Writes a file that only root can read: an environment may hold secrets.
fn write_private(path: &Path, json: &Value) -> Result<()> {
    let mut file = berth_shim::record::create_private(path).step_on("create", path)?;
    file.write_all(json.to_string().as_bytes()).step_on("write", path)
}

/// Attaches what was prepared to the places that `config.json` names.
fn attach(prepared: &Prepared, rootfs: &Path, sources: &Path) -> Result<()> {
    for directory in [rootfs, sources] {
        fs::create_dir_all(directory).step_on("make", directory)?;
    }
    attach_at(&prepared.root, rootfs)?;
    for (index, mount) in prepared.mounts.iter().enumerate() {
        if let Some(mount) = mount {
            attach_at(mount, &sources.join(index.to_string()))?;
        }
    }
    Ok(())
}

/// Attaches a mount to the path `at`, which is made: a directory for a directory, a file for a
/// file.
fn attach_at(mount: &OwnedFd, at: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(mount).step_on("stat", at)?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        fs::create_dir_all(at).step_on("make", at)?;
    } else {
        File::create(at).step_on("make", at)?;
    }
    let target = open_path(at, rustix::fs::OFlags::empty()).step_on("open", at)?;
    mount::api::attach(mount.as_fd(), target.as_fd()).step_on("mount on", at)
}

/// The seccomp profile, as the daemon has written it for the runtime.
fn seccomp(dir: &Path, process: &Process) -> Result<Option<Value>> {
    if !process.seccomp {
        return Ok(None);
    }
    let path = dir.join(layout::SECCOMP_PROFILE);
    let text = fs::read(&path).step_on("read", &path)?;
    serde_json::from_slice(&text).map(Some).map_err(|_| failure("damaged:", &path))
}

/// The `msg` of the last line of a log in JSON.
fn last_message(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line: Value =
        serde_json::from_str(text.lines().rev().find(|line| !line.is_empty())?).ok()?;
    line["msg"].as_str().map(str::to_owned)
}
