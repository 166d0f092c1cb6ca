//! Freezing all processes of a cgroup, by the file that every cgroup of v2 has, on hybrid hosts too.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use berth_base::error::Error;

use super::{Hierarchies, kill::await_event};

/// How long processes may take to freeze. One that waits for a disk does so when that has answered.
const FREEZING: Duration = Duration::from_secs(10);
const FILE: &str = "cgroup.freeze";

/// A cgroup whose processes are frozen, all that are below it included.
#[derive(Clone, Debug)]
pub struct Frozen {
    directory: PathBuf,
}

impl Hierarchies {
    /// Freezes all processes of the cgroup `path`, and waits until they are. Blocks.
    ///
    /// # Errors
    /// One does not freeze: then none is frozen. `FailedPrecondition` on a host without a v2 tree.
    pub fn freeze(&self, path: &str) -> anyhow::Result<Frozen> {
        let directory = self.directories(path).unified.ok_or_else(|| {
            Error::precondition(
                "this machine has no cgroup v2 hierarchy, without which nothing can be paused",
            )
        })?;
        let frozen = Frozen { directory };
        write(&frozen.directory, "1")?;
        let waited = await_event(&frozen.directory, "frozen 1", FREEZING);
        if let Err(error) = waited {
            frozen.thaw()?;
            return Err(error).with_context(|| format!("freeze {}", frozen.directory.display()));
        }
        Ok(frozen)
    }

    /// The cgroup `path`, if it is frozen.
    pub fn frozen(&self, path: &str) -> Option<Frozen> {
        let directory = self.directories(path).unified?;
        let text = fs::read_to_string(directory.join(FILE)).ok()?;
        (text.trim() == "1").then_some(Frozen { directory })
    }
}

impl Frozen {
    /// Lets the processes go on. Success when the cgroup is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn thaw(&self) -> anyhow::Result<()> {
        if self.directory.exists() { write(&self.directory, "0") } else { Ok(()) }
    }
}

fn write(directory: &Path, text: &str) -> anyhow::Result<()> {
    let path = directory.join(FILE);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
