//! Hooks: programs of the host that run while a container is made, and what they are told (OCI runtime specification, "Lifecycle").

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use berth_shim::{
    record::Stage,
    spec::{Container, Hook, Spec},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::prctl,
};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use crate::{
    error::{Result, Step, failure},
    run,
};

pub(crate) const OCI_VERSION: &str = "1.0.2";
/// For one that says nothing about it: nothing that is started waits for ever.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How much of what a failed hook said is passed on: the end, which says why.
const TAIL: u64 = 512;

/// Where the container is in its life.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

/// The OCI bundle that hooks look into: a directory with `config.json` and `rootfs`.
pub(crate) struct Bundle<'a> {
    id: &'a str,
    path: PathBuf,
}

impl<'a> Bundle<'a> {
    pub(crate) fn of(spec: &'a Spec) -> Self {
        Self { id: &spec.id, path: spec.socket_dir.join("bundle") }
    }

    /// Where the container's root is while its hooks run, in its own mount namespace only.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    pub(crate) fn make(&self, container: &Container) -> Result<()> {
        let rootfs = self.rootfs();
        fs::create_dir_all(&rootfs).step_on("make", &rootfs)?;
        // As much as hooks read; the environment, which may hold secrets, is not among it.
        let config = json!({
            "ociVersion": OCI_VERSION,
            "root": { "path": rootfs, "readonly": container.rootfs.readonly },
            "process": { "cwd": container.process.cwd, "args": container.process.args },
        });
        let path = self.path.join("config.json");
        fs::write(&path, config.to_string()).step_on("write", &path)
    }

    fn state(&self, status: Status, pid: i32) -> String {
        let status = match status {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        };
        let mut state = json!({ "ociVersion": OCI_VERSION, "id": self.id, "status": status, "bundle": self.path });
        if pid > 0 {
            state["pid"] = pid.into();
        }
        state.to_string()
    }

    /// Runs `hooks` in order, in the namespaces of this process.
    pub(crate) fn run(&self, hooks: &[Hook], status: Status, pid: i32) -> Result<()> {
        hooks.iter().try_for_each(|hook| self.run_one(hook, &self.state(status, pid)))
    }

    /// As `run`, for the process that stays: its other children are born in the container's PID namespace, and what a hook leaves
    /// running is not its child.
    pub(crate) fn run_outside(&self, hooks: &[Hook], status: Status, pid: i32) -> Result<()> {
        if hooks.is_empty() {
            return Ok(());
        }
        let own = File::open("/proc/self/ns/pid").step_on("open", "/proc/self/ns/pid")?;
        // Of a container that ended there is none any more.
        let of_children = File::open("/proc/self/ns/pid_for_children").ok();
        setns(own, CloneFlags::CLONE_NEWPID).step("return to the host's PID namespace")?;
        prctl::set_child_subreaper(false).step("prctl PR_SET_CHILD_SUBREAPER")?;
        let result = self.run(hooks, status, pid);
        run::take_name();
        prctl::set_child_subreaper(true).step("prctl PR_SET_CHILD_SUBREAPER")?;
        if let Some(namespace) = of_children {
            setns(namespace, CloneFlags::CLONE_NEWPID).step("join the container's PID namespace")?;
        }
        result
    }

    fn run_one(&self, hook: &Hook, state: &str) -> Result<()> {
        let output: File = memfd_create("hook", MemfdFlags::CLOEXEC).step("memfd_create")?.into();
        let copy = || output.try_clone().map(Stdio::from).step("duplicate a descriptor");
        let mut command = Command::new(&hook.path);
        command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
        if let Some((name, args)) = hook.args.split_first() {
            command.arg0(name).args(args);
        }
        command.stdin(Stdio::piped()).stdout(copy()?).stderr(copy()?);
        let mut child = command.spawn().step_on("hook: execve", &hook.path)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read it need not.
            let _ = stdin.write_all(state.as_bytes());
        }
        let limit = hook.timeout.map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        if !run::ends_within(&child, limit, |waited| run::stage(Stage::Hook(waited.as_secs() as usize)))? {
            // It has ended since, or does now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure(format!("hook: no end within {} s:", limit.as_secs()), &hook.path));
        }
        let status = child.wait().step("wait for a hook")?;
        if status.success() {
            return Ok(());
        }
        Err(failure(format!("hook: {status}: {}:", tail(output)), &hook.path))
    }
}

/// The end of what was said, on one line.
fn tail(mut output: File) -> String {
    let mut bytes = Vec::new();
    let length = output.seek(SeekFrom::End(0)).unwrap_or(0);
    // What cannot be read is not said.
    let _ = output.seek(SeekFrom::Start(length.saturating_sub(TAIL))).and_then(|_| output.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}
