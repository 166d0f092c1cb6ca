//! What was asked for.

use std::path::{Path, PathBuf};

use berth_image::LayerKey;
use berth_node::container::Meta;
use berth_shim::layout;
use serde::{Deserialize, Serialize};

use super::mounts::{Kind, MountPoint};
use crate::api::{
    create::{ContainerConfig, NetworkingConfig},
    host_config::HostConfig,
};

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the slash that Docker's answers put in front.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The digest of the image's config.
    pub image_id: String,
    /// Leased for as long as the container exists.
    pub layers: Vec<LayerKey>,
    /// The request's, with what it leaves to the image.
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub networking: NetworkingConfig,
    /// Whether `networking` names all its networks; else it is on that of its mode, if it names none.
    #[serde(default)]
    pub lists_networks: bool,
    /// All that is mounted in it, but for what `HostConfig.Tmpfs` names.
    pub mounts: Vec<MountPoint>,
    /// The program and its arguments.
    pub path: String,
    pub args: Vec<String>,
    /// Whether this stands for one that cannot be read.
    #[serde(skip)]
    pub is_lost: bool,
    /// Whether it is of a step of a build, with which it goes.
    #[serde(default)]
    pub is_of_build: bool,
}

impl Record {
    /// Stands for a record that cannot be read: what is known of its container without it. `run` is
    /// what its run was made of, if there is one.
    pub(crate) fn lost(id: &str, created_at: i64, run: Option<&Meta>) -> Self {
        Self {
            id: id.to_owned(),
            name: id.to_owned(),
            created_at,
            image_id: run.map(|run| run.image_id.clone()).unwrap_or_default(),
            layers: run.map(|run| run.layers.clone()).unwrap_or_default(),
            config: ContainerConfig {
                image: run.map(|run| run.image_name().to_owned()).unwrap_or_default(),
                ..ContainerConfig::default()
            },
            host_config: HostConfig::default(),
            networking: NetworkingConfig::default(),
            lists_networks: false,
            mounts: Vec::new(),
            path: String::new(),
            args: Vec::new(),
            is_lost: true,
            is_of_build: false,
        }
    }

    /// What is said to somebody who asks for something that needs more than a lost record has.
    pub(crate) fn why_lost(&self) -> String {
        format!("the record of container {} is damaged: it can only be removed", self.id)
    }

    /// The names of the volumes that it uses.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &str> {
        let volumes = self.mounts.iter().filter(|mount| mount.kind == Kind::Volume);
        volumes.map(|mount| mount.name.as_str())
    }

    /// Those of its volumes that nobody has named.
    pub(crate) fn unnamed_volumes(&self) -> impl Iterator<Item = &str> {
        let unnamed = self.mounts.iter().filter(|mount| mount.details.is_unnamed);
        unnamed.map(|mount| mount.name.as_str())
    }

    /// Whether it is there after the next boot: one with `--rm` goes with the boot that it was made
    /// in, as does one of a build, so that nothing of it has to wait for the disk.
    pub(crate) fn outlives_boot(&self) -> bool {
        !self.host_config.auto_remove && !self.is_of_build
    }
}

/// Where the engine keeps a container.
#[derive(Clone, Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Of one that is being removed with its volumes: never listed, and the next start goes on with it.
    pub(crate) fn removing(&self) -> Self {
        Self(self.0.with_extension("removing"))
    }

    /// Below the daemon's root.
    pub(crate) fn all(root: &Path) -> PathBuf {
        root.join("engine/containers")
    }

    pub(crate) fn of(root: &Path, id: &str) -> Self {
        Self(Self::all(root).join(id))
    }

    /// Of one that is being made: never listed, and removed by the next start.
    pub(crate) fn incomplete(&self) -> Self {
        Self(self.0.with_extension("incomplete"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("container.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// A link whose target is the id of the boot with which the container goes, if it goes with one.
    /// File systems write a name with its target, so that this is whole where the records are not.
    pub(crate) fn boot(&self) -> PathBuf {
        self.0.join("boot")
    }

    /// Exists while a commit has it paused.
    pub(crate) fn paused(&self) -> PathBuf {
        self.0.join("paused-by-commit")
    }

    /// What the container has written over its image.
    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join(layout::UPPER)
    }

    /// What overlayfs needs beside it.
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join(layout::WORK)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join(LOG)
    }
}

/// The name of its log.
pub(crate) const LOG: &str = "container.log";
