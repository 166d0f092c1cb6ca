//! The process of `berth-dns`, which answers in the containers on networks of users. It lives on while
//! the daemon does not, ends by itself when nobody is left to ask it, and is started again when it dies.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use berth_base::{
    blocking::{blocking, spawn_blocking},
    layout::Layout,
    sealed::Sealed,
};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Command,
    sync::Notify,
};

use super::told::Told;
use crate::streams::logs::LogWatcher;

const PROGRAM: &str = "berth-dns";
/// One that has run for so long is started again at once.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct NameServer {
    pub(super) told: Told,
    /// None if the program cannot be read.
    program: Option<Sealed>,
    wanted: Notify,
}

impl NameServer {
    /// Reads the program and makes its directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn open(layout: &Layout) -> anyhow::Result<Self> {
        let directory = layout.names();
        let told = Told::open(directory.clone())
            .with_context(|| format!("make {}", directory.display()))?;
        let program = Sealed::beside_own(PROGRAM).and_then(|path| Sealed::load(&path));
        if let Err(error) = &program {
            tracing::warn!(
                "containers on networks of users find each other by /etc/hosts alone: {error:#}"
            );
        }
        Ok(Self { told, program: program.ok(), wanted: Notify::new() })
    }

    /// Whether there is a program.
    pub(super) fn is_there(&self) -> bool {
        self.program.is_some()
    }

    /// Tells that there is a container to be served.
    pub(super) fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a container is served in this namespace.
    ///
    /// # Errors
    /// Why it cannot serve.
    pub(super) async fn served(
        &self,
        watcher: &Arc<LogWatcher>,
        container: &str,
        namespace: &Path,
    ) -> anyhow::Result<()> {
        let serving = self.told.serving();
        let mut watch = watcher.watch(&serving).context("watch its answers")?;
        loop {
            let answer = blocking(|| fs::read_to_string(serving.join(container)));
            let answer = answer.unwrap_or_default();
            let (served, why) = answer.split_once('\n').unwrap_or((&answer, ""));
            // That of an earlier run may still be there.
            match (Path::new(served) == namespace, why) {
                (true, "") => return Ok(()),
                (true, why) => bail!(why.to_owned()),
                (false, _) => watch.changed().await,
            }
        }
    }

    /// Keeps a server running for as long as there are containers to be served. One of an earlier
    /// daemon goes on, unless this daemon has another program.
    pub(crate) async fn keep(self: Arc<Self>) {
        let Some(program) = &self.program else { return };
        let is_wanted = || blocking(|| self.told.has_containers());
        if let Err(error) = self.replace_older(program).await {
            tracing::warn!("replace the name server of an earlier daemon: {error:#}");
        }
        let mut delay = FIRST_DELAY;
        loop {
            while !is_wanted() {
                self.wanted.notified().await;
            }
            let begun = Instant::now();
            let ended = self.attend(program).await;
            match ended {
                // It saw that nobody was left, or another serves.
                Ok(()) if begun.elapsed() > FIRST_DELAY || !is_wanted() => continue,
                Ok(()) => {}
                Err(error) => tracing::warn!(
                    "the name server of containers is started again: {error:#}{}",
                    self.last_words()
                ),
            }
            if begun.elapsed() > STEADY {
                delay = FIRST_DELAY;
                continue;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    /// Waits for the end of the server that runs, or of one that this starts.
    async fn attend(&self, program: &Sealed) -> anyhow::Result<()> {
        if let Some(pid) = blocking(|| self.holder())? {
            let process = pidfd_open(pid, PidfdFlags::NONBLOCK).context("open its process")?;
            // It may have ended in between, and another have its number.
            if blocking(|| self.holder())? == Some(pid) {
                ended(process).await?;
                // How, is told to its parent alone.
                return Ok(());
            }
        }
        let log = blocking(|| File::create(self.log())).context("make its log")?;
        let mut command = Command::new(program.path());
        command
            .arg0(PROGRAM)
            .arg(&self.told.directory)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let status = command.spawn().context("launch it")?.wait().await.context("wait for it")?;
        match status.success() {
            true => Ok(()),
            false => bail!("it has ended with {status}"),
        }
    }

    /// Ends the server of an earlier daemon that had another program; what is asked meanwhile is asked
    /// again by its clients.
    async fn replace_older(&self, program: &Sealed) -> anyhow::Result<()> {
        let Some(pid) = blocking(|| self.holder())? else { return Ok(()) };
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK).context("open its process")?;
        let executable = PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        let program = program.clone();
        let is_same = spawn_blocking(move || program.is_copied_by(&executable)).await?;
        if is_same.context("compare its program")? || blocking(|| self.holder())? != Some(pid) {
            return Ok(());
        }
        pidfd_send_signal(&process, Signal::KILL).context("end it")?;
        ended(process).await
    }

    /// The process that serves the directory: the one that has its lock.
    fn holder(&self) -> anyhow::Result<Option<Pid>> {
        let lock = match File::open(self.told.directory.join("lock")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("open its lock"),
        };
        let mut asked = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&lock, FcntlArg::F_GETLK(&mut asked)).context("ask who has its lock")?;
        let is_held = asked.l_type != libc::F_UNLCK as libc::c_short;
        Ok(Some(asked.l_pid).filter(|_| is_held).and_then(Pid::from_raw))
    }

    fn log(&self) -> PathBuf {
        self.told.directory.join("log")
    }

    /// The last line that it has written.
    fn last_words(&self) -> String {
        let log = blocking(|| fs::read_to_string(self.log())).unwrap_or_default();
        log.lines().last().map(|line| format!(": {line}")).unwrap_or_default()
    }
}

/// Waits for the end of a process.
async fn ended(process: OwnedFd) -> anyhow::Result<()> {
    #[expect(
        deprecated,
        reason = "an OwnedFd stays the same descriptor, which is what the new name asks for"
    )]
    let process = AsyncFd::with_interest(process, Interest::READABLE)?;
    process.readable().await.map(drop).context("wait for its end")
}
