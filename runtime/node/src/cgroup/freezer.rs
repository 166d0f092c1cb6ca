//! Freezing all processes of a cgroup: by the file that every cgroup of v2 has, on hybrid hosts too,
//! else by the freezer of v1.

use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use berth_base::error::Error;

use super::{
    Hierarchies,
    kill::{await_event, is_of_removed},
};

/// How long processes may take to freeze. One that waits for a disk does so when that has answered.
const FREEZING: Duration = Duration::from_secs(10);
/// Between two looks at the freezer of v1.
const PAUSE: Duration = Duration::from_millis(1);

/// A cgroup whose processes are frozen, all that are below it included.
#[derive(Clone, Debug)]
pub struct Frozen(Freezer);

/// The directory of a cgroup by which it can be frozen.
#[derive(Clone, Debug)]
enum Freezer {
    Unified(PathBuf),
    V1(PathBuf),
}

impl Hierarchies {
    /// Freezes all processes of the cgroup `path`, and waits until they are. Blocks.
    ///
    /// # Errors
    /// One does not freeze: then none is frozen. `FailedPrecondition` on a host that has neither a
    /// v2 tree nor the freezer of v1.
    pub fn freeze(&self, path: &str) -> anyhow::Result<Frozen> {
        let freezer = self.freezer_of(path).ok_or_else(|| {
            Error::precondition(
                "this machine has neither a cgroup v2 hierarchy nor a freezer of v1, without which \
                 nothing can be paused",
            )
        })?;
        freezer.write(freezer.frozen())?;
        if let Err(error) = freezer.await_frozen() {
            freezer.write(freezer.thawed())?;
            return Err(error).with_context(|| format!("freeze {}", freezer.file().display()));
        }
        Ok(Frozen(freezer))
    }

    /// The cgroup `path`, if it is frozen.
    pub fn frozen(&self, path: &str) -> Option<Frozen> {
        let freezer = self.freezer_of(path)?;
        freezer.is_asked_to_freeze().then_some(Frozen(freezer))
    }

    fn freezer_of(&self, path: &str) -> Option<Freezer> {
        let unified = self.unified.as_ref().map(|root| Freezer::Unified(root.join(path)));
        unified.or_else(|| self.freezer.as_ref().map(|root| Freezer::V1(root.join(path))))
    }
}

impl Frozen {
    /// Lets the processes go on. Success when the cgroup is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn thaw(&self) -> anyhow::Result<()> {
        let Self(freezer) = self;
        match freezer.write(freezer.thawed()) {
            Err(error) if error.downcast_ref().is_some_and(is_of_removed) => Ok(()),
            result => result,
        }
    }
}

impl Freezer {
    fn file(&self) -> PathBuf {
        match self {
            Self::Unified(directory) => directory.join("cgroup.freeze"),
            Self::V1(directory) => directory.join("freezer.state"),
        }
    }

    fn frozen(&self) -> &'static str {
        match self {
            Self::Unified(_) => "1",
            Self::V1(_) => "FROZEN",
        }
    }

    fn thawed(&self) -> &'static str {
        match self {
            Self::Unified(_) => "0",
            Self::V1(_) => "THAWED",
        }
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let path = self.file();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Whether it is frozen, or on the way to that.
    fn is_asked_to_freeze(&self) -> bool {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        ["1", "FROZEN", "FREEZING"].contains(&text.trim())
    }

    fn await_frozen(&self) -> io::Result<()> {
        match self {
            Self::Unified(directory) => await_event(directory, "frozen 1", FREEZING),
            Self::V1(_) => self.await_state(),
        }
    }

    /// Waits for the freezer of v1, which tells nobody when it has frozen the last process.
    #[expect(clippy::disallowed_methods, reason = "nothing else tells")]
    fn await_state(&self) -> io::Result<()> {
        let deadline = Instant::now() + FREEZING;
        loop {
            // The kernel looks whether all are frozen when it is asked for the state.
            if fs::read_to_string(self.file())?.trim() == self.frozen() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a process does not freeze"));
            }
            thread::sleep(PAUSE);
            // A process that was forked meanwhile may have been missed (freezer-subsystem.txt).
            fs::write(self.file(), self.frozen())?;
        }
    }
}
