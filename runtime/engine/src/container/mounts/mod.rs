//! What is mounted in a container: decided when it is created, and on record from then on.

mod plan;
mod request;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    plan::{check_propagation, plan, unknown_driver},
    request::{destination, mount_points},
};
use crate::volumes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Bind,
    Tmpfs,
    Volume,
    Image,
}

/// A mount. All but `details` is what docker shows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPoint {
    pub kind: Kind,
    /// Of a volume.
    pub name: String,
    /// A path of the host, or the name of an image.
    pub source: String,
    /// Absolute, in the container.
    pub destination: String,
    /// Of a volume.
    pub driver: String,
    pub mode: String,
    pub writable: bool,
    pub propagation: String,
    pub details: Details,
}

impl MountPoint {
    /// A volume of this name, whose files are at `source`.
    pub(crate) fn of_volume(
        name: String,
        source: &Path,
        destination: &Path,
        writable: bool,
    ) -> Self {
        Self {
            kind: Kind::Volume,
            name,
            source: source.display().to_string(),
            destination: destination.display().to_string(),
            driver: volumes::DRIVER.to_owned(),
            mode: String::new(),
            writable,
            propagation: String::new(),
            details: Details::default(),
        }
    }
}

/// What a mount says that is not shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Details {
    /// Whether a directory that is not there is made.
    pub makes_source: bool,
    pub relabels: bool,
    /// Whether what is mounted below the source is left out.
    pub is_single: bool,
    /// Whether read-only is meant for the mounts below as well; `None` where the kernel can.
    pub recursive_readonly: Option<bool>,
    /// Whether the request says how mounts propagate.
    pub names_propagation: bool,
    /// Of a tmpfs, as mount(8) takes them.
    pub options: Vec<String>,
    /// The part of an image or of a volume that is shown; empty for all of it.
    pub sub_path: String,
    /// Whether a volume that is empty gets what the image has in its place.
    pub is_filled: bool,
    /// Whether a volume got its name from the daemon, so that it goes with the containers that use it.
    pub is_unnamed: bool,
    /// Of a volume that is made.
    pub labels: Option<BTreeMap<String, String>>,
}
