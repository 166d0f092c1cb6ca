//! Another OCI runtime makes the container: this process prepares what it is to mount, drives it by its command line, and keeps the
//! container as it keeps its own.

mod config;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
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
    spec::{Container, OciRuntime, Process, Program, Rlimit, Spec},
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
    credentials,
    error::{Failure, Result, Step, failure},
    exec::Exec,
    init::{self, Message},
    monitor::Init,
    passwd,
    rootfs::{self, Prepared},
    run, socket,
    stdio::ChildStdio,
    sys::{self, Fork},
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In the container's directory, which is the bundle.
const CONFIG: &str = "config.json";
const PID: &str = "oci.pid";
const LOG: &str = "oci.log";
/// Sources of the container's mounts, in the mount namespace of `create` only.
const SOURCES: &str = "mounts";
/// By this name alone: runtimes work in the bundle, and the whole path may be longer than an address can hold.
const CONSOLE: &str = "console.sock";
/// For each of its verbs, and less than the daemon waits for a launch: one that hangs is killed by who started it.
const TIMEOUT: Duration = Duration::from_secs(25);
/// How much of a log is read: its last line says why.
const TAIL: u64 = 4096;

/// One container and the runtime that makes it.
pub(crate) struct Oci<'a> {
    dir: &'a Path,
    spec: &'a Spec,
    container: &'a Container,
    runtime: &'a OciRuntime,
}

impl<'a> Oci<'a> {
    /// `None`: the shim makes the container itself.
    pub(crate) fn of(dir: &'a Path, spec: &'a Spec) -> Option<Self> {
        let Program::Container(container) = &spec.program else { return None };
        container.oci_runtime.as_ref().map(|runtime| Self { dir, spec, container, runtime })
    }

    /// The namespaces that the process of `create` needs: the container's are made by the runtime.
    pub(crate) fn clone_flags() -> CloneFlags {
        CloneFlags::CLONE_NEWNS
    }

    /// A socket on which the runtime hands over the container's terminal, if it is to have one.
    pub(crate) fn console(&self) -> Result<Option<OwnedFd>> {
        if !self.container.process.tty {
            return Ok(None);
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).step("socket")?;
        socket::bind_in(&socket, self.dir, CONSOLE)?;
        listen(&socket, 1).step("listen")?;
        Ok(Some(socket))
    }

    /// `create`, in a process and a mount namespace of its own. Returns only a failure.
    pub(crate) fn create(&self, stdio: ChildStdio, channel: BorrowedFd<'_>) -> Failure {
        match self.prepare(stdio, channel) {
            Err(failure) => failure,
            Ok(()) => {
                let (pid, bundle) = (self.dir.join(PID).display().to_string(), self.dir.display().to_string());
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
        // Nothing else ends this process when a volume does not answer: it is not in the container's cgroup.
        alarm::set(TIMEOUT.as_secs() as u32);
        let process = &self.container.process;
        let prepared = rootfs::prepare(self.dir, self.container, None)?;
        let (rootfs, sources) = (self.dir.join(layout::ROOTFS), self.dir.join(SOURCES));
        attach(&prepared, &rootfs, &sources)?;
        let login = passwd::resolve(prepared.root.as_fd(), &process.user)?;
        credentials::set_oom_score_adj(process)?;
        let score = fs::read_to_string("/proc/self/oom_score_adj").step_on("read", "/proc/self/oom_score_adj")?;
        let given = config::Given {
            limits: process.rlimits.iter().map(credentials::set_limit).collect::<Result<Vec<Rlimit>>>()?,
            oom_score_adj: score.trim().parse().unwrap_or_default(),
            seccomp: seccomp(self.dir, process)?,
            login: &login,
            rootfs: &rootfs,
            sources: &sources,
        };
        let config = config::config(self.spec, self.container, self.runtime, &given);
        let path = self.dir.join(CONFIG);
        fs::write(&path, config.to_string()).step_on("write", &path)?;
        setsid().step("setsid")?;
        let streams = match stdio {
            ChildStdio::Pipes { .. } => stdio,
            ChildStdio::Terminal => crate::stdio::discard()?,
        };
        init::install(streams)?;
        init::send(channel, &Message::User(login.user), None);
        alarm::cancel();
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime.path);
        command.env_clear().env("PATH", PATH).arg("--root").arg(&self.runtime.state);
        command.arg("--log").arg(self.dir.join(LOG)).args(["--log-format", "json"]).args(args);
        command
    }

    /// Becomes the runtime. Returns only a failure.
    fn execute(&self, args: &[&str]) -> Failure {
        let error = self.command(args).exec();
        let (step, path) = ("execute the OCI runtime".into(), self.runtime.path.display().to_string());
        Failure { step, path, errno: error.raw_os_error().unwrap_or_default() }
    }

    /// Runs the runtime to its end.
    fn run(&self, args: &[&str]) -> Result<()> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().step_on("execute the OCI runtime", &self.runtime.path)?;
        if !run::ends_within(&child, TIMEOUT, |_| {})? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(self.hangs(args[0]));
        }
        let status = child.wait().step("wait for the OCI runtime")?;
        if status.success() { Ok(()) } else { Err(self.failed(args[0])) }
    }

    fn hangs(&self, verb: &str) -> Failure {
        failure(format!("OCI runtime: {verb}: no end within {} s:", TIMEOUT.as_secs()), &self.runtime.path)
    }

    /// What the runtime said of its last failure.
    fn failed(&self, verb: &str) -> Failure {
        let said = last_message(&self.dir.join(LOG)).unwrap_or_else(|| "it says nothing about why".to_owned());
        failure(format!("OCI runtime: {verb}: {said}:"), &self.runtime.path)
    }

    /// Waits for the end of `create`, which `process` is: the container's first process, a child of this one now, and its terminal.
    pub(crate) fn created(&self, process: &Init, console: Option<OwnedFd>) -> Result<(Init, Option<OwnedFd>)> {
        let begun = Instant::now();
        while !run::is_ready(process.pidfd.as_fd(), TIMEOUT)? {
            if begun.elapsed() >= TIMEOUT {
                let _ = sys::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL);
                return Err(self.hangs("create"));
            }
        }
        if !matches!(waitpid(process.pid, None).step("wait for the OCI runtime")?, WaitStatus::Exited(_, 0)) {
            return Err(self.failed("create"));
        }
        let path = self.dir.join(PID);
        let text = fs::read_to_string(&path).step_on("read", &path)?;
        let pid: i32 = text.trim().parse().map_err(|_| failure("not a process id in", &path))?;
        let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| failure("not a process id in", &path))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).step("pidfd_open")?;
        let terminal = console.map(|socket| {
            let connection = accept_with(&socket, SocketFlags::CLOEXEC).step("accept the terminal")?;
            // The text that comes along is the terminal's name.
            init::receive_fd(connection.as_fd())?.ok_or_else(|| failure("the OCI runtime sent no terminal", ""))
        });
        Ok((Init { pid: Pid::from_raw(pid), pidfd }, terminal.transpose()?))
    }

    pub(crate) fn start(&self) -> Result<()> {
        self.run(&["start", &self.spec.id])
    }

    pub(crate) fn kill(&self, signal: i32) -> Result<()> {
        self.run(&["kill", &self.spec.id, &signal.to_string()])
    }

    /// Whatever state the container is in.
    pub(crate) fn delete(&self) {
        // It may never have been made; `remove` deletes the state of what is left.
        let _ = self.run(&["delete", "--force", &self.spec.id]);
    }

    /// One more process: the runtime stays in front of it, passes its streams on and ends as it does.
    pub(crate) fn exec(&self, id: &str, process: &Process, streams: Vec<OwnedFd>) -> Result<Exec> {
        let file = |name: &str| self.dir.join(layout::EXEC).join(format!("{id}.{name}"));
        let (request, pid_file) = (file("oci.json"), file("pid"));
        // What the container runs as was resolved when it was made.
        let config = self.dir.join(CONFIG);
        let text = fs::read(&config).step_on("read", &config)?;
        let mut json: Value = serde_json::from_slice(&text).map_err(|_| failure("damaged:", &config))?;
        let mut own = json["process"].take();
        own["args"] = process.args.clone().into();
        own["terminal"] = process.tty.into();
        fs::write(&request, own.to_string()).step_on("write", &request)?;
        let (ours, theirs) = init::channel()?;
        match sys::clone3(0, None).step("fork")? {
            Fork::Parent { pid, pidfd } => {
                Ok(Exec { pid, pidfd, channel: Some(ours), cgroup: None, behind: Some(pid_file) })
            }
            Fork::Child => {
                drop(ours);
                let installed = setsid().step("setsid").and_then(|_| crate::exec::install(process, streams));
                let failure = match installed {
                    Err(failure) => failure,
                    Ok(()) => {
                        let [request, pid_file] = [request, pid_file].map(|path| path.display().to_string());
                        self.execute(&["exec", "--process", &request, "--pid-file", &pid_file, &self.spec.id])
                    }
                };
                init::send(theirs.as_fd(), &Message::Failed(failure), None);
                std::process::exit(1)
            }
        }
    }
}

/// Puts what was prepared where `config.json` says that it is.
fn attach(prepared: &Prepared, rootfs: &Path, sources: &Path) -> Result<()> {
    for directory in [rootfs, sources] {
        fs::create_dir_all(directory).step_on("make", directory)?;
    }
    let put = |mount: &OwnedFd, at: &Path| {
        let stat = rustix::fs::fstat(mount).step_on("stat", at)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            fs::create_dir_all(at).step_on("make", at)?;
        } else {
            File::create(at).step_on("make", at)?;
        }
        let target = rootfs::open_path(at, rustix::fs::OFlags::empty()).step_on("open", at)?;
        crate::mounts::attach(mount.as_fd(), target.as_fd()).step_on("mount on", at)
    };
    put(&prepared.root, rootfs)?;
    for (index, mount) in prepared.mounts.iter().enumerate() {
        if let Some(mount) = mount {
            put(mount, &sources.join(index.to_string()))?;
        }
    }
    Ok(())
}

fn seccomp(dir: &Path, process: &Process) -> Result<Option<Value>> {
    if !process.seccomp {
        return Ok(None);
    }
    let path = dir.join(layout::SECCOMP_PROFILE);
    let text = fs::read(&path).step_on("read", &path)?;
    serde_json::from_slice(&text).map(Some).map_err(|_| failure("damaged:", &path))
}

/// The `msg` of the log's last line.
fn last_message(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line: Value = serde_json::from_str(text.lines().rev().find(|line| !line.is_empty())?).ok()?;
    line["msg"].as_str().map(str::to_owned)
}

/// Kills the process that an exec's runtime stands in front of: while that one lives, the number is not given to another.
pub(crate) fn kill_behind(pid_file: &Path) {
    let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // One that has ended needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
