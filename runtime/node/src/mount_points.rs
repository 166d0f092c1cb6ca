//! The layers with the places of mounts (`Rootfs::mount_points`): who uses which, and which are kept.
//!
//! Shims make them, each under the name of a set of mounts, and any number of containers share one.
//! Some that nobody uses are kept for the next container with the same mounts.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_base::{blocking::blocking, layout::Layout, trash};
use berth_image::Digest;
use berth_shim::spec::{Mount, Program, Spec};

/// How many that no container uses are kept. Each is a few dozen empty files.
const KEPT: usize = 64;

/// The name of the layer for these mounts. What a mount is put on depends on its source too, which
/// only the shim sees: where that contradicts the layer, it makes another one.
pub(crate) fn name(mounts: &[Mount]) -> String {
    let targets = mounts.iter().map(|mount| mount.target.as_os_str().as_bytes());
    // No path has a NUL in it, so that no two lists look the same.
    let list = targets.collect::<Vec<_>>().join(&0);
    Digest::sha256(list).hex().to_owned()
}

/// The name that a shim was told, for a container whose own record is damaged.
pub(crate) fn of_spec(spec: &Spec) -> Option<String> {
    let Program::Container(container) = &spec.program else { return None };
    let name = container.rootfs.mount_points.as_ref()?.file_name()?;
    name.to_str().map(str::to_owned)
}

/// How many containers use each layer.
#[derive(Debug, Default)]
pub struct MountPoints {
    users: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// Keeps a layer for as long as it exists. Its end only counts down: nothing is deleted.
#[derive(Debug)]
pub(crate) struct Lease {
    name: String,
    users: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(count) = locked(&self.users).get_mut(&self.name) {
            *count -= 1;
        }
    }
}

impl MountPoints {
    /// To be taken before a shim is told the name.
    pub(crate) fn lease(&self, name: &str) -> Lease {
        *locked(&self.users).entry(name.to_owned()).or_default() += 1;
        Lease { name: name.to_owned(), users: self.users.clone() }
    }

    /// Finds what earlier daemons have left. To be called once all containers are known.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn adopt(&self, layout: &Layout) -> io::Result<()> {
        for entry in blocking(|| fs::read_dir(layout.mount_points()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            locked(&self.users).entry(name).or_default();
        }
        self.collect(layout);
        Ok(())
    }

    /// Deletes layers that no container uses, but for some.
    pub fn collect(&self, layout: &Layout) {
        // Locked all the time, so that nobody takes a lease of one that is about to go.
        let mut users = locked(&self.users);
        let unused = users.iter().filter(|(_, count)| **count == 0);
        let surplus: Vec<String> = unused.skip(KEPT).map(|(name, _)| name.clone()).collect();
        for name in surplus {
            match trash::discard(layout, &layout.mount_points().join(&name)) {
                Ok(()) => _ = users.remove(&name),
                Err(error) => tracing::warn!(name, %error, "a layer of mount points stays"),
            }
        }
    }
}

fn locked(users: &Mutex<BTreeMap<String, usize>>) -> MutexGuard<'_, BTreeMap<String, usize>> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
}
