//! What every verb needs of this machine: paths, the shim, cgroups, networks, images.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Context;

use crate::{
    apparmor::AppArmor,
    cgroup::{self, Devices, Resources},
    config::{Config, Driver},
    events::Changes,
    handlers::Handlers,
    image::Images,
    layout::Layout,
    network::Networks,
    selinux::SeLinux,
    shim::{Placeholder, Program},
};

#[derive(Debug)]
pub(crate) struct Machine {
    pub layout: Layout,
    pub shim: Program,
    pub cgroups: cgroup::Host,
    /// With the systemd driver.
    scopes: Option<cgroup::Scopes>,
    pub apparmor: AppArmor,
    pub selinux: SeLinux,
    pub handlers: Handlers,
    pub cdi_dirs: Vec<PathBuf>,
    pub networks: Arc<Networks>,
    pub images: Arc<Images>,
    /// What happens to pods and containers.
    pub changes: Changes,
    /// Whether pods can have user namespaces of their own.
    pub user_namespaces: bool,
    /// Of /proc/sys/kernel/random/boot_id: records of another boot speak of processes that are gone.
    pub boot_id: String,
}

/// Another one after every boot (random(4)).
pub(crate) fn boot_id() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    Ok(text.trim().to_owned())
}

impl Machine {
    pub(crate) async fn new(config: &Config) -> anyhow::Result<Self> {
        let layout = Layout { root: config.root.clone(), state: config.state.clone() };
        for directory in [layout.sandboxes(), layout.containers()] {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let boot_id = boot_id()?;
        let shim = Program::load(&Program::path()?)?;
        let probed = shim.probe(&layout.containers()).await;
        if let Err(error) = &probed {
            tracing::info!("no user namespaces for pods: {error:#}");
        }
        Ok(Self {
            user_namespaces: probed.is_ok(),
            shim,
            cgroups: cgroup::Host::detect(config.cgroup.driver),
            scopes: match config.cgroup.driver {
                Driver::Cgroupfs => None,
                Driver::Systemd => Some(cgroup::Scopes::connect().await.context("cgroup.driver is \"systemd\"")?),
            },
            apparmor: AppArmor::detect(),
            selinux: SeLinux::detect(),
            handlers: Handlers::new(&config.handlers),
            cdi_dirs: config.cdi.spec_dirs.clone(),
            networks: Networks::new(&config.cni, &layout)?,
            images: Arc::new(Images::open(layout.clone(), config, &boot_id)?),
            changes: Changes::new(),
            boot_id,
            layout,
        })
    }

    /// Makes the cgroup `path` with its limits. What is returned keeps it until a first process is in it.
    pub(crate) async fn make_cgroup(
        &self,
        path: &str,
        resources: Resources,
        devices: Devices,
    ) -> anyhow::Result<Option<Placeholder>> {
        let mut placeholder = None;
        if let Some(scopes) = &self.scopes {
            let process = self.shim.hold()?;
            scopes.start(path, process.pid()?, &resources).await?;
            placeholder = Some(process);
        }
        let (cgroups, path) = (self.cgroups.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || cgroups.create(&path, &resources, &devices)).await??;
        Ok(placeholder)
    }

    /// Changes the limits of a cgroup in use: all of them, or none.
    ///
    /// # Errors
    /// What the kernel or systemd refused; everything is as before then.
    pub(crate) async fn update_cgroup(&self, path: &str, before: &Resources, after: Resources) -> anyhow::Result<()> {
        if let Some(scopes) = &self.scopes {
            scopes.update(path, &after).await?;
        }
        let (cgroups, own, wanted) = (self.cgroups.clone(), path.to_owned(), after.clone());
        let updated = tokio::task::spawn_blocking(move || cgroups.update(&own, &wanted)).await?;
        if let (Err(_), Some(scopes)) = (&updated, &self.scopes) {
            scopes.revert(path, before, &after).await?;
        }
        updated
    }

    /// Kills what lives in the cgroup `path` and removes it. Success when it is not there.
    pub(crate) async fn destroy_cgroup(&self, path: &str) -> anyhow::Result<()> {
        let (cgroups, own) = (self.cgroups.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || cgroups.destroy(&own)).await??;
        match &self.scopes {
            // systemd does it by itself, but for a scope in which nothing ever was.
            Some(scopes) if self.cgroups.exists(path) => scopes.stop(path).await,
            _ => Ok(()),
        }
    }
}
