//! Volumes: directories with a name that outlive the containers which use them.
//!
//! Each has a directory, `root/volumes/<NAME>`, with
//!
//! - `volume.json`, what was asked for (`Volume`);
//! - `_data`, which containers have mounted;
//! - `boot`, a link to the id of the boot with which it goes, if it was made for a container with
//!   `--rm` and nobody has named it.
//!
//! Who uses a volume is not on disk: it follows from the records of the containers.

mod create;
mod fill;
mod registry;
mod remove;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    create::Wanted,
    fill::{Filling, fill},
    registry::Volumes,
    remove::{discard_of_earlier_boots, discard_unnamed, remove},
};

/// The driver of all of them.
pub(crate) const DRIVER: &str = "local";
/// The label of those that nobody has named.
pub(crate) const UNNAMED: &str = "com.docker.volume.anonymous";

const RECORD: &str = "volume.json";
const DATA: &str = "_data";
/// A copy of an image's files that is not complete.
const FILLING: &str = "_filling";
const BOOT: &str = "boot";

/// `volume.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub labels: Option<BTreeMap<String, String>>,
}

/// Whether a volume can have this name, which is that of a directory.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() > 1
        && name.len() <= 255
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// What is said to somebody who asks for another name.
pub(crate) fn invalid_name(name: &str) -> String {
    if name.len() == 1 {
        return format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric \
             characters"
        );
    }
    format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use \
         absolute path"
    )
}

impl Volumes {
    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The name of the volume of which containers have mounted this.
    pub(crate) fn name_of(&self, data: &Path) -> Option<String> {
        let name = data.parent()?.file_name()?.to_str()?;
        (data == self.data(name)).then(|| name.to_owned())
    }

    /// What containers have mounted of it.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.directory(name).join(DATA)
    }
}
