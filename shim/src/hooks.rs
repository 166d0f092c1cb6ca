//! Hooks: programs that run at certain moments of a container's life, such as those that CDI names
//! for a device, and what they are told (OCI runtime specification, "Lifecycle" and
//! "POSIX-platform Hooks").

use std::{
    fs::{DirBuilder, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::{DirBuilderExt, chown},
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use berth_shim::{
    record::{Stage, create_private},
    spec::{Container, Hook, Hooks, Program, Spec},
};
use nix::sys::prctl;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use crate::{
    error::{Result, Step, failure},
    process::{
        progress::{stage, take_name},
        wait::ends_within,
    },
};

/// The version of the OCI runtime specification that hooks and runtimes are told.
pub(crate) const OCI_VERSION: &str = "1.0.2";
/// How long a hook may take that says nothing about it. The specification has no default, but a
/// start must not take for ever.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a failed hook's output gets into the error, in bytes. The end says why it failed.
const TAIL: u64 = 512;

/// The hooks that this shim runs for `spec`, if there are any. Another OCI runtime runs its own.
pub(crate) fn to_run(spec: &Spec) -> Option<&Hooks> {
    match &spec.program {
        Program::Container(container) if container.oci_runtime.is_none() => {
            Some(&container.hooks).filter(|hooks| !hooks.is_empty())
        }
        Program::Container(_) | Program::Pause => None,
    }
}

/// The `status` that a hook is told.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

/// The OCI bundle that hooks look into: a directory with `config.json` and `rootfs`. berth needs
/// none itself.
pub(crate) struct Bundle<'a> {
    id: &'a str,
    path: PathBuf,
    /// The ids on the host of the container's root, who runs hooks in its namespaces.
    owner: (u32, u32),
}

impl<'a> Bundle<'a> {
    pub(crate) fn of(spec: &'a Spec) -> Self {
        let owner =
            spec.namespaces.user.as_ref().map_or((0, 0), |user| (user.root_uid, user.root_gid));
        Self { id: &spec.id, path: spec.socket_dir.join("bundle"), owner }
    }

    /// Where the container's root is mounted while its hooks run, in its own mount namespace only.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Makes the bundle's directory, which removing the container deletes.
    pub(crate) fn make(&self, container: &Container) -> Result<()> {
        let rootfs = self.rootfs();
        DirBuilder::new().recursive(true).mode(0o700).create(&rootfs).step_on("make", &rootfs)?;
        // What hooks are known to read. The environment is left out, as it often holds secrets.
        // Arguments may hold some too, so only root can read the file.
        let config = json!({
            "ociVersion": OCI_VERSION,
            "root": { "path": rootfs, "readonly": container.rootfs.readonly },
            "process": { "cwd": container.process.cwd, "args": container.process.args },
        });
        let path = self.path.join("config.json");
        let mut file = create_private(&path).step_on("create", &path)?;
        file.write_all(config.to_string().as_bytes()).step_on("write", &path)?;
        let (uid, gid) = self.owner;
        [&path, &rootfs, &self.path]
            .into_iter()
            .try_for_each(|path| chown(path, Some(uid), Some(gid)).step_on("chown", path))
    }

    /// What a hook reads from standard input ("State" of the specification).
    fn state(&self, status: Status, pid: i32) -> String {
        let status = match status {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        };
        let mut state = json!({
            "ociVersion": OCI_VERSION, "id": self.id, "status": status, "bundle": self.path,
        });
        if pid > 0 {
            state["pid"] = pid.into();
        }
        state.to_string()
    }

    /// Runs `hooks` one after the other, in the namespaces of this process. The first that fails
    /// ends it.
    pub(crate) fn run(&self, hooks: &[Hook], status: Status, pid: i32) -> Result<()> {
        hooks.iter().try_for_each(|hook| self.run_one(hook, &self.state(status, pid)))
    }

    /// As `run`, in the monitor. What a hook leaves running does not become its child.
    pub(crate) fn run_outside(&self, hooks: &[Hook], status: Status, pid: i32) -> Result<()> {
        if hooks.is_empty() {
            return Ok(());
        }
        // The last wait of this process is for all of its children, so a daemon that a hook starts
        // would keep the container from ending.
        prctl::set_child_subreaper(false).step("prctl PR_SET_CHILD_SUBREAPER")?;
        let result = self.run(hooks, status, pid);
        // `run_one` has used the name to tell how long it waits.
        take_name();
        prctl::set_child_subreaper(true).step("prctl PR_SET_CHILD_SUBREAPER")?;
        result
    }

    fn run_one(&self, hook: &Hook, state: &str) -> Result<()> {
        // In memory and not in a pipe: nobody would read that while this process waits.
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
            // EPIPE: a hook need not read its state.
            let _ = stdin.write_all(state.as_bytes());
        }
        let limit = hook.timeout.map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        if !ends_within(&child, limit, |waited| stage(Stage::Hook(waited.as_secs() as usize)))? {
            // kill(2) fails with EPERM, in a user namespace, if the hook has become another user.
            // Waiting for it would be waiting for ever, so it is left until the container ends.
            if child.kill().is_ok() {
                let _ = child.wait();
            }
            return Err(failure(format!("hook: no end within {} s:", limit.as_secs()), &hook.path));
        }
        let status = child.wait().step("wait for a hook")?;
        if status.success() {
            return Ok(());
        }
        Err(failure(format!("hook: {status}: {}:", tail(output)), &hook.path))
    }
}

/// The end of a hook's output, on one line.
fn tail(mut output: File) -> String {
    let mut bytes = Vec::new();
    let length = output.seek(SeekFrom::End(0)).unwrap_or(0);
    // An error here would hide the one that is being reported.
    let _ = output
        .seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .and_then(|_| output.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}
