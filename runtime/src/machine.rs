//! What every verb needs of this machine: paths, the shim, cgroups, networks, images.

use std::{fs, sync::Arc};

use anyhow::Context;

use crate::{cgroup, config::Config, image::Images, layout::Layout, network::Networks, shim::Program};

#[derive(Debug)]
pub(crate) struct Machine {
    pub layout: Layout,
    pub shim: Program,
    pub cgroups: cgroup::Host,
    pub networks: Networks,
    pub images: Arc<Images>,
    /// Whether pods can have user namespaces of their own.
    pub user_namespaces: bool,
    /// Of /proc/sys/kernel/random/boot_id: records of another boot speak of processes that are gone.
    pub boot_id: String,
}

impl Machine {
    pub(crate) async fn new(config: &Config) -> anyhow::Result<Self> {
        let layout = Layout { root: config.root.clone(), state: config.state.clone() };
        for directory in [layout.sandboxes(), layout.containers()] {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let boot_id =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?.trim().to_owned();
        let shim = Program::load(&Program::path()?)?;
        let probed = shim.probe(&layout.containers()).await;
        if let Err(error) = &probed {
            tracing::info!("no user namespaces for pods: {error:#}");
        }
        Ok(Self {
            user_namespaces: probed.is_ok(),
            shim,
            cgroups: cgroup::Host::detect(),
            networks: Networks::new(&config.cni, &layout)?,
            images: Arc::new(Images::open(layout.clone(), config.registry.config_path.clone(), &boot_id)?),
            boot_id,
            layout,
        })
    }
}
