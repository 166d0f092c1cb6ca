//! The layers of a container, and their overlay.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::layout::Layout;
use nix::{
    mount::{MsFlags, mount},
    unistd::chdir,
};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, open_tree,
    },
};

use super::apart::own_mounts;
use crate::{
    changes::{Change, Overlay},
    container::record::{Directory, Record},
};

/// The directories that make up the root of a container.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    layers_dir: PathBuf,
    /// Below that, topmost first.
    lower: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    pub(crate) fn of(layout: &Layout, record: &Record) -> Self {
        let own = Directory::of(&layout.root, &record.id);
        let files = |key: &berth_image::LayerKey| Path::new(key.as_ref()).join(berth_image::FILES);
        Self {
            layers_dir: layout.layers(),
            lower: record.layers.iter().map(files).collect(),
            upper: own.upper(),
            work: own.work(),
        }
    }

    /// What the container has written.
    pub(crate) fn upper(&self) -> &Path {
        &self.upper
    }

    /// Those of the image, topmost first.
    pub(crate) fn lower(&self) -> impl Iterator<Item = PathBuf> {
        self.lower.iter().map(|layer| self.layers_dir.join(layer))
    }

    /// What the container has changed in its image. Of the paths `own`, relative to the root, nothing
    /// is said, and those of `places` exist. Blocks.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn changes(&self, own: &[&str], places: &[String]) -> anyhow::Result<Vec<Change>> {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = openat(CWD, path, flags, Mode::empty());
            opened.with_context(|| format!("open {}", path.display()))
        };
        let upper = open(&self.upper)?;
        let lower: Vec<OwnedFd> =
            self.lower().map(|layer| open(&layer)).collect::<anyhow::Result<_>>()?;
        let lower: Vec<BorrowedFd<'_>> = lower.iter().map(AsFd::as_fd).collect();
        let overlay = Overlay { upper: upper.as_fd(), lower: &lower };
        let own = own.iter().map(PathBuf::from).collect();
        let places: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
        overlay.changes(&own, &places).context("compare the container with its image")
    }

    /// Mounts them, attached to nothing. To be called in a thread that ends afterwards.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn mount(&self) -> anyhow::Result<OwnedFd> {
        match self.mount_new() {
            // Before Linux 6.5 there is no `lowerdir+`.
            Err(Errno::INVAL) => self.mount_by_option(),
            mounted => mounted.context("mount the overlay of the container"),
        }
    }

    fn mount_new(&self) -> rustix::io::Result<OwnedFd> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in self.lower() {
            fsconfig_set_string(&overlay, "lowerdir+", layer)?;
        }
        fsconfig_set_string(&overlay, "upperdir", &self.upper)?;
        fsconfig_set_string(&overlay, "workdir", &self.work)?;
        fsconfig_create(&overlay)?;
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    }

    /// With mount(2), whose options have room for some sixty layers, named relative to their
    /// directory.
    fn mount_by_option(&self) -> anyhow::Result<OwnedFd> {
        own_mounts()?;
        chdir(&self.layers_dir).context("enter the directory of the layers")?;
        let lower: Vec<_> = self.lower.iter().map(|layer| layer.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            self.upper.display(),
            self.work.display()
        );
        // Over its own upper directory, which this mount namespace does not need.
        mount(Some("overlay"), &self.upper, Some("overlay"), MsFlags::empty(), Some(&*options))
            .context("mount the overlay of the container")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, &self.upper, flags).context("clone the overlay of the container")
    }
}
