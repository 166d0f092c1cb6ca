//! Programs of older builds, which `hack/contract` makes from this repository's history.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{machine::Machine, programs::binary};

/// A build that the current one has to get on with.
#[derive(Clone, Debug)]
pub struct OldBuild {
    /// Which version of the protocol it speaks.
    pub version: u32,
    directory: PathBuf,
}

impl OldBuild {
    /// Those of `tests/contract/builds`, oldest first.
    ///
    /// # Panics
    /// The list is not one.
    pub fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let list = fs::read_to_string(root.join("contract/builds")).expect("the list of builds");
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            let version = words.next().and_then(|word| word.parse().ok()).expect("a version");
            let directory = root.join("../target/contract").join(words.next().expect("a commit"));
            Self { version, directory }
        };
        list.lines().filter(|line| !line.starts_with('#')).map(parse).collect()
    }

    /// Whether its shim was built.
    pub fn is_there(&self) -> bool {
        self.directory.join("berth-shim").exists()
    }

    /// Whether its daemon was built too.
    pub fn has_daemon(&self) -> bool {
        self.directory.join("berthd").exists()
    }

    /// A directory for `Machine::programs` with those of its programs that are named here, and the
    /// others of the current build.
    ///
    /// # Errors
    /// A program cannot be copied.
    pub fn programs(&self, machine: &Machine, old: &[&str]) -> io::Result<PathBuf> {
        let directory = machine.path(&format!("programs-{}-{}", self.version, old.join("-")));
        fs::create_dir_all(&directory)?;
        for name in ["berthd", "berth-bridge", "berth-dns", "berth-shim"] {
            let from = if old.contains(&name) { self.directory.join(name) } else { binary(name) };
            fs::copy(from, directory.join(name))?;
        }
        Ok(directory)
    }
}
