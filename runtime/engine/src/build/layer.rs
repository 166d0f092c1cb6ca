//! The files of an image, with room for what is written over them. A step that copies files or makes a
//! directory writes its layer in one; what is only read is one as well.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use berth_base::blocking::{blocking, spawn_blocking};
use berth_image::{LayerKey, Lease};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{
    directory::BuildDirectory,
    failure::{BuildFailure, Result},
};
use crate::{
    container::files::{self, Layers},
    engine::Engine,
};

#[derive(Debug)]
pub(crate) struct ImageFiles {
    directory: PathBuf,
    root: OwnedFd,
    _lease: Lease,
    /// Whoever writes in it may outlive the build, which has been cancelled.
    _build: Arc<BuildDirectory>,
}

impl ImageFiles {
    /// Mounts the layers of an image, topmost first.
    ///
    /// # Errors
    /// A layer is gone; the kernel's.
    pub(crate) async fn open(
        engine: &Engine,
        build: &Arc<BuildDirectory>,
        layers: &[LayerKey],
    ) -> Result<Self> {
        let host = &engine.node.host;
        let lease = host.images.lease(layers).ok_or_else(|| {
            BuildFailure::new("a layer of the image is damaged or being removed: pull it again")
        })?;
        let directory = blocking(|| {
            let directory = build.part("layer")?;
            for part in ["upper", "work", "below"] {
                std::fs::create_dir(directory.join(part))
                    .with_context(|| format!("make {part}"))?;
            }
            Ok::<_, anyhow::Error>(directory)
        })?;
        let layers = Layers::over(&host.layout, layers, &directory);
        let mounted = spawn_blocking(move || files::mount(&layers)).await;
        let root = mounted.context("mount the image")??;
        Ok(Self { directory, root, _lease: lease, _build: build.clone() })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory that has only what was written.
    ///
    /// # Errors
    /// Those of the filesystem.
    pub(crate) fn written(&self) -> anyhow::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = self.directory.join("upper");
        blocking(|| openat(CWD, &upper, flags, Mode::empty())).context("open the new layer")
    }
}
