//! Runs `berth-shim` with one of its verbs, and reads what it reports.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_base::{observe::FAULTS, sealed::Sealed};
use berth_shim::record::{Report, Stage};
use tokio::process::{Child, Command};

/// The shim's executable, and what it is run for.
#[derive(Clone, Debug)]
pub struct Program {
    executable: Sealed,
}

impl Program {
    /// Copies the executable at `path`.
    ///
    /// # Errors
    /// It cannot be read, or there is no memory for it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { executable: Sealed::load(path)? })
    }

    /// Where the executable is: beside the daemon's own.
    pub fn path() -> anyhow::Result<PathBuf> {
        Sealed::beside_own("berth-shim")
    }

    /// `berth-shim pin`: makes the namespaces of `pin.json` in `dir`.
    pub async fn pin(&self, dir: &Path) -> anyhow::Result<()> {
        report("pin", self.spawn("pin", dir, Stdio::null())?, || None).await.map(drop)
    }

    /// `berth-shim run`: launches the container of `dir`, while `cgroup` makes the cgroup that its
    /// spec names. The shim makes nothing of the container before both are ready. What `cgroup`
    /// returns is kept until the program runs.
    ///
    /// # Errors
    /// That of `cgroup`, and then nothing was launched; the shim's `Failure`; or `Stalled` if the
    /// `stage` of the launch does not change for too long.
    pub async fn run<T>(
        &self,
        dir: &Path,
        cgroup: impl Future<Output = anyhow::Result<T>>,
        stage: impl Fn() -> Option<Stage>,
    ) -> anyhow::Result<()> {
        let (gate, mut go) = io::pipe().context("pipe")?;
        // The cgroup first, in a thread of its own: this one waits until the shim is executed.
        let launch = async { self.spawn("run", dir, gate.into()) };
        let (kept, launch) = tokio::join!(cgroup, launch);
        let launch = launch?;
        // Without a cgroup `go` is dropped: at the end of its input the shim exits without a trace.
        let _kept = kept?;
        // A shim that has failed already does not read this; its report says why.
        let _ = go.write_all(b"\n");
        let reported = report("run", launch, stage).await?;
        reported.map(drop).ok_or_else(|| anyhow!("berth-shim run ended without a report"))
    }

    /// `berth-shim probe`: fails if pods with files in `dir` cannot have user namespaces, and says
    /// why.
    pub async fn probe(&self, dir: &Path) -> anyhow::Result<()> {
        report("probe", self.spawn("probe", dir, Stdio::null())?, || None).await.map(drop)
    }

    /// `berth-shim hold`: starts a process that does nothing until it is dropped.
    pub fn hold(&self) -> anyhow::Result<Placeholder> {
        let mut command = self.spawnable("hold");
        let child = command
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("launch berth-shim hold")?;
        Ok(Placeholder { child })
    }

    /// The command for a verb. Its environment is empty, so that nothing of the daemon's gets into
    /// a container.
    fn spawnable(&self, verb: &str) -> Command {
        let mut command = Command::new(self.executable.path());
        command.arg0("berth-shim").arg(verb).env_clear().envs(faults()).current_dir("/");
        command
    }

    /// Starts a verb on a directory.
    fn spawn(&self, verb: &str, dir: &Path, stdin: Stdio) -> anyhow::Result<Child> {
        let mut command = self.spawnable(verb);
        command.arg("--dir").arg(dir).stdin(stdin).stdout(Stdio::piped());
        command.spawn().with_context(|| format!("launch berth-shim {verb}"))
    }
}

/// Reads the report of a verb to its end: the pid in it, if there is one.
async fn report(
    verb: &str,
    child: Child,
    stage: impl Fn() -> Option<Stage>,
) -> anyhow::Result<Option<u32>> {
    let output = with_progress(child.wait_with_output(), stage).await?;
    let output = output.with_context(|| format!("launch berth-shim {verb}"))?;
    match output.stdout.split(|byte| *byte == b'\n').next().filter(|line| !line.is_empty()) {
        None if output.status.success() => Ok(None),
        None => bail!("berth-shim {verb} ended with {}", output.status),
        Some(line) => match serde_json::from_slice(line).context("read the shim's report")? {
            Report::Pid(pid) => Ok(Some(pid)),
            Report::Error(failure) => Err(failure.into()),
        },
    }
}

/// Where a test says at which step a shim is to fail. Release builds give a shim nothing.
fn faults() -> Option<(&'static str, OsString)> {
    let value = cfg!(debug_assertions).then(|| env::var_os(FAULTS)).flatten()?;
    Some((FAULTS, value))
}

/// The process of `hold`. It keeps a systemd scope from being removed until the container's own
/// processes are in it.
#[derive(Debug)]
pub struct Placeholder {
    child: Child,
}

impl Placeholder {
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("it ended already")
    }
}

/// How long a launch may make no progress. Most likely it waits for a file system that does not
/// answer.
const STALLED: Duration = Duration::from_secs(30);

/// A launch was given up. With the stage that it was in, if its process had one as its name.
#[derive(Clone, Copy, Debug)]
pub struct Stalled(pub Option<Stage>);

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no progress within {} s", STALLED.as_secs())
    }
}

impl std::error::Error for Stalled {}

/// Waits for `launch`, for as long as its `stage` changes.
///
/// # Errors
/// It has not changed for `STALLED`.
pub async fn with_progress<T>(
    launch: impl Future<Output = T>,
    stage: impl Fn() -> Option<Stage>,
) -> Result<T, Stalled> {
    let mut launch = std::pin::pin!(launch);
    let mut seen = None;
    loop {
        match tokio::time::timeout(STALLED / 2, &mut launch).await {
            Ok(output) => return Ok(output),
            Err(_) => match stage() {
                now if seen == Some(now) => return Err(Stalled(now)),
                now => seen = Some(now),
            },
        }
    }
}
