//! The files of a container, for `docker cp`, `docker export` and `docker diff`: a root directory of
//! which no process of the container, and none of the host, knows.
//!
//! - `running`: a copy of the mounts that the container has;
//! - `stopped`: its layers, mounted anew, and over them what `mounts` finds.
//!
//! All mounts are in memory, held by descriptors: whatever ends the daemon ends them as well.

mod apart;
mod fill;
mod mounts;
mod overlay;
mod running;
mod stopped;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use berth_base::blocking::spawn_blocking;
use berth_image::Lease;
use berth_node::container::State;

pub(crate) use self::{fill::fill_volumes, overlay::Layers};

use super::{life, object::Container};
use crate::{
    engine::Engine,
    http::error::{Failure, Result},
};

/// Which mounts are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What a user of the container sees, but for /proc, /sys and /dev.
    Mounts,
    /// The image with what the container has written over it.
    RootOnly,
}

/// The root directory of a container, for as long as this exists.
#[derive(Debug)]
pub(crate) struct Files {
    root: OwnedFd,
    _shown: Option<Shown>,
    /// The mount namespace that holds the mounts below the root.
    _namespace: Option<OwnedFd>,
    _use: Use,
    /// Of the images that are mounted in it.
    _images: Vec<Lease>,
}

/// overlayfs must not be mounted twice over one writable directory. So while files of a stopped
/// container are used nothing else mounts it, and while those of a running one are used no later run
/// begins.
#[derive(Debug)]
enum Use {
    Shared { _guard: tokio::sync::OwnedRwLockReadGuard<()> },
    Alone { _guard: tokio::sync::OwnedRwLockWriteGuard<()> },
}

/// The events that tell of volumes which are mounted for a client.
#[derive(Debug)]
struct Shown {
    engine: Arc<Engine>,
    container: Arc<Container>,
}

impl Shown {
    fn begin(engine: &Arc<Engine>, container: &Arc<Container>, scope: Scope) -> Option<Self> {
        if scope == Scope::RootOnly {
            return None;
        }
        engine.publish_mounts(container);
        Some(Self { engine: engine.clone(), container: container.clone() })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.engine.publish_unmounts(&self.container);
    }
}

/// A root, and the namespace of what is mounted below it.
type Root = (OwnedFd, Option<OwnedFd>);

/// Mounts layers, seen by nobody else, for as long as the descriptor of their root is open. Blocks.
///
/// # Errors
/// The kernel's.
pub(crate) fn mount(layers: &Layers) -> anyhow::Result<OwnedFd> {
    stopped::open(layers, Vec::new()).map(|(root, _)| root)
}

impl Files {
    /// Waits while others use the files of the container, if it does not run.
    ///
    /// # Errors
    /// 403 for a bind of the daemon's own files, 409 while it is not known whether it runs; the
    /// kernel's.
    pub(crate) async fn open(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        scope: Scope,
    ) -> Result<Self> {
        let shared = container.files.clone().read_owned().await;
        match life::running(engine, container).map(|run| run.state()) {
            Some(State::Running { started, .. }) => {
                let opened = spawn_blocking(move || running::open(&started, scope)).await;
                let (root, namespace) = opened.map_err(anyhow::Error::from)??;
                let shared = Use::Shared { _guard: shared };
                let _shown = Shown::begin(engine, container, scope);
                let images = Vec::new();
                return Ok(Self {
                    root,
                    _shown,
                    _namespace: namespace,
                    _use: shared,
                    _images: images,
                });
            }
            // It may run, so that its layers may be mounted.
            Some(State::Unknown { why }) => return Err(Failure::conflict(why)),
            Some(State::Created | State::Exited { .. }) | None => drop(shared),
        }
        let alone = container.files.clone().write_owned().await;
        let record = container.record();
        let (below, images) = match scope {
            Scope::Mounts => mounts::of(engine, &record)?,
            Scope::RootOnly => Default::default(),
        };
        let layers = Layers::of(&engine.node.host.layout, &record);
        let opened = spawn_blocking(move || stopped::open(&layers, below)).await;
        let (root, namespace) = opened.map_err(anyhow::Error::from)??;
        let alone = Use::Alone { _guard: alone };
        let _shown = Shown::begin(engine, container, scope);
        Ok(Self { root, _shown, _namespace: namespace, _use: alone, _images: images })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
