//! Runs `berth-shim` with one of its verbs, and reads what it reports.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_base::observe::FAULTS;
use berth_shim::record::{Report, Stage};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::process::{Child, Command};

/// How often a seal that the kernel refuses for the moment is tried again.
const SEAL_ATTEMPTS: u32 = 20;

/// A sealed copy of the shim's executable in memory, made once. A container cannot overwrite it
/// through /proc/PID/exe of the shim, which is root on the host (CVE-2019-5736), and a package
/// upgrade does not change the shim of a daemon that runs.
#[derive(Clone, Debug)]
pub struct Program {
    memfd: Arc<OwnedFd>,
}

impl Program {
    /// Copies the executable at `path`.
    ///
    /// # Errors
    /// It cannot be read, or there is no memory for it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let memfd = memfd_create("berth-shim", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .context("memfd_create")?;
        let mut file = fs::File::from(memfd);
        file.write_all(&bytes).context("copy berth-shim")?;
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        seal(&file, seals).context("seal the copy of berth-shim")?;
        // execve(2) fails with ETXTBSY for a file that is open for writing, so it is opened again.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let memfd = fs::File::open(path).context("reopen the copy of berth-shim")?;
        Ok(Self { memfd: Arc::new(memfd.into()) })
    }

    /// Where the executable is: beside the daemon's own.
    pub fn path() -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("find own executable")?;
        Ok(own.with_file_name("berth-shim"))
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
        let mut command = Command::new(format!("/proc/self/fd/{}", self.memfd.as_raw_fd()));
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
/// Seals a file in memory. On a busy machine another processor may hold on to pages that were just
/// written, and the kernel, which gives it a moment, then refuses with EBUSY (mm/memfd.c).
fn seal(file: &fs::File, seals: SealFlag) -> nix::Result<()> {
    let mut attempt = 1;
    loop {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Err(Errno::EBUSY) if attempt < SEAL_ATTEMPTS => attempt += 1,
            sealed => return sealed.map(drop),
        }
    }
}
