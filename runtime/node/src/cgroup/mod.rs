//! Cgroups: where they are, their limits, what they use, and their end.
//!
//! The crate cgroups-rs writes most of the limits. This module closes its gaps: it sets no limit at
//! all on a path with a leading `/`, ignores `unified` keys on v2, and does not see the v2 tree of
//! a hybrid host.

mod block_io;
mod details;
mod devices;
mod files;
mod freezer;
mod hierarchies;
mod kill;
mod limits;
mod memory;
mod resources;
mod sampler;
mod scope;
mod slice;
mod usage;

use std::{fs, sync::PoisonError};

use anyhow::Context;
use berth_base::config::Driver;
use berth_shim::spec::Cgroups;
use cgroups_rs::fs::Cgroup;

pub(crate) use self::kill::is_of_removed;
pub use self::{
    block_io::{BlockIo, DeviceLimit},
    details::{Details, DeviceIo, HugePages},
    devices::{DeviceRule, Devices},
    freezer::Frozen,
    hierarchies::Hierarchies,
    resources::Resources,
    sampler::Sampler,
    scope::Scopes,
    usage::{Pressure, Stall, Usage},
};

use self::{
    hierarchies::{CONTROLLERS, DEFAULT_PARENT},
    kill::{kill, remove_tree},
};

impl Hierarchies {
    /// Makes the cgroup `path`, unless systemd has made it already, and sets its limits.
    ///
    /// # Errors
    /// The kernel refuses a limit, or this host has no controller for it.
    pub fn create(
        &self,
        path: &str,
        resources: &Resources,
        devices: &Devices,
    ) -> anyhow::Result<()> {
        // The default parent must not be removed between its own making and that of its child.
        let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = match (self.driver, self.is_v2) {
            (Driver::Systemd, true) => self.load(path),
            (_, is_v2) => {
                let controllers = (!is_v2).then(|| CONTROLLERS.map(str::to_owned).to_vec());
                let hierarchies = cgroups_rs::fs::hierarchies::auto();
                Cgroup::new_with_specified_controllers(hierarchies, path, controllers)
                    .with_context(|| format!("make cgroup {path}"))?
            }
        };
        // cgroups-rs has made the directories of v1 only on a hybrid host, and that of the freezer on
        // none.
        for root in self.unified.iter().chain(&self.freezer) {
            let directory = root.join(path);
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        self.limit(&cgroup, path, resources)?;
        // On v2 the shim attaches a program instead.
        if let (false, Devices::Only(rules)) = (self.is_v2, devices) {
            devices::restrict(&cgroup, rules)
                .with_context(|| format!("restrict devices of cgroup {path}"))?;
        }
        Ok(())
    }

    /// The eBPF program that the shim attaches to a cgroup of v2, where no file says which devices
    /// it may use. `None` on v1, and if it may use all of them.
    pub fn device_program(&self, devices: &Devices) -> Option<Vec<u8>> {
        match devices {
            Devices::Only(rules) if self.is_v2 => Some(devices::program(rules)),
            Devices::Only(_) | Devices::All => None,
        }
    }

    /// Kills all processes in the cgroup `path`, waits until it is empty and removes it. Success
    /// when there is none. Blocks.
    ///
    /// # Errors
    /// A process does not die; or on v1 without a v2 tree, where only the shim can kill them all,
    /// one is still there.
    pub fn destroy(&self, path: &str) -> anyhow::Result<()> {
        let Cgroups { unified, controllers, is_scope } = self.directories(path);
        if let Some(directory) = &unified {
            kill(directory).with_context(|| format!("kill {}", directory.display()))?;
        }
        // On v1 a frozen process does not even die.
        if let Some(frozen) = self.frozen(path).filter(|_| unified.is_none()) {
            frozen.thaw()?;
        }
        // systemd removes the cgroup of a scope once it is empty. If somebody else did, it would
        // keep the unit.
        for directory in unified.iter().filter(|_| !is_scope).chain(&controllers) {
            remove_tree(directory).with_context(|| format!("remove {}", directory.display()))?;
        }
        if path.strip_prefix(DEFAULT_PARENT).is_some_and(|rest| rest.starts_with('/')) {
            self.remove_default_parent();
        }
        Ok(())
    }

    /// Nothing else would ever remove it: it belongs to no pod.
    fn remove_default_parent(&self) {
        let _parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        let Cgroups { unified, controllers, .. } = self.directories(DEFAULT_PARENT);
        for directory in unified.iter().chain(&controllers) {
            // It fails as long as another pod is in it.
            let _ = fs::remove_dir(directory);
        }
    }
}
