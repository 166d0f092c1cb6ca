//! The layers of containers and of images, and their overlays.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::Context;
use berth_base::layout::Layout;
use berth_image::LayerKey;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
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

use crate::{
    changes::{Change, Overlay},
    container::{
        base_layer,
        record::{Directory, Record},
    },
};

/// Directories that only the layers of images are in.
#[derive(Clone, Debug)]
pub(super) struct ImageLayers {
    directory: PathBuf,
    /// Below that, topmost first.
    layers: Vec<PathBuf>,
}

/// The directories that make up the root of a container.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    /// Those of the image, and the one of all containers.
    lower: ImageLayers,
    upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    pub(crate) fn of(layout: &Layout, record: &Record) -> Self {
        let own = Directory::of(&layout.root, &record.id);
        let mut lower = ImageLayers::of(layout, &record.layers);
        lower.layers.push(base_layer::path(&layout.root));
        Self { lower, upper: own.upper(), work: own.work() }
    }

    /// Those of an image, with `directory` for what is written over them, which has `upper`, `work` and,
    /// in the place of an image that has no layer, the empty `below`.
    pub(crate) fn over(layout: &Layout, layers: &[LayerKey], directory: &Path) -> Self {
        let mut lower = ImageLayers::of(layout, layers);
        if layers.is_empty() {
            lower.layers.push(directory.join("below"));
        }
        Self { lower, upper: directory.join("upper"), work: directory.join("work") }
    }

    /// What the container has written.
    pub(crate) fn upper(&self) -> &Path {
        &self.upper
    }

    /// What the container has changed in its image. The paths of `places`, relative to the root, exist.
    /// Blocks.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn changes(&self, places: &[String]) -> anyhow::Result<Vec<Change>> {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = openat(CWD, path, flags, Mode::empty());
            opened.with_context(|| format!("open {}", path.display()))
        };
        let upper = open(&self.upper)?;
        let lower: Vec<OwnedFd> =
            self.lower.paths().map(|layer| open(&layer)).collect::<anyhow::Result<_>>()?;
        let lower: Vec<BorrowedFd<'_>> = lower.iter().map(AsFd::as_fd).collect();
        let overlay = Overlay { upper: upper.as_fd(), lower: &lower };
        let places: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
        overlay.changes(&places).context("compare the container with its image")
    }

    /// Mounts them, attached to nothing. To be called in a mount namespace of this thread's own.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn mount(&self) -> anyhow::Result<OwnedFd> {
        self.lower.overlay(Some(self)).context("mount the overlay of the container")
    }
}

impl ImageLayers {
    pub(super) fn of(layout: &Layout, layers: &[LayerKey]) -> Self {
        let files = |key: &LayerKey| Path::new(key.as_ref()).join(berth_image::FILES);
        Self { directory: layout.layers(), layers: layers.iter().map(files).collect() }
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.layers.iter().map(|layer| self.directory.join(layer))
    }

    /// Mounts them, attached to nothing. To be called in a mount namespace of this thread's own.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn mount(&self) -> anyhow::Result<OwnedFd> {
        match self.layers.as_slice() {
            // overlayfs wants two layers if none is writable.
            [only] => clone(&self.directory.join(only)).context("clone the layer of the image"),
            _ => self.overlay(None).context("mount the overlay of the image"),
        }
    }

    /// These layers, below what `container` has written if there is one.
    fn overlay(&self, container: Option<&Layers>) -> anyhow::Result<OwnedFd> {
        match self.new_overlay(container) {
            // Before Linux 6.5 there is no `lowerdir+`.
            Err(Errno::INVAL) => self.overlay_by_option(container),
            mounted => Ok(mounted?),
        }
    }

    fn new_overlay(&self, container: Option<&Layers>) -> rustix::io::Result<OwnedFd> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in self.paths() {
            fsconfig_set_string(&overlay, "lowerdir+", layer)?;
        }
        if let Some(Layers { upper, work, .. }) = container {
            fsconfig_set_string(&overlay, "upperdir", upper)?;
            fsconfig_set_string(&overlay, "workdir", work)?;
        }
        fsconfig_create(&overlay)?;
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    }

    /// With mount(2), whose options have room for some sixty layers, named relative to their
    /// directory.
    fn overlay_by_option(&self, container: Option<&Layers>) -> anyhow::Result<OwnedFd> {
        chdir(&self.directory).context("enter the directory of the layers")?;
        let lower: Vec<_> = self.layers.iter().map(|layer| layer.display().to_string()).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some(Layers { upper, work, .. }) = container {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        // It has to be somewhere until it is cloned, in this mount namespace only.
        let place = container.map_or(&self.directory, |container| &container.upper);
        mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(&*options))?;
        let cloned = clone(place)?;
        umount2(place, MntFlags::MNT_DETACH).context("uncover the layers")?;
        Ok(cloned)
    }
}

/// A detached mount of a directory, without what is mounted below it.
fn clone(directory: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, directory, flags)
}
