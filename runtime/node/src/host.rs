//! What every verb needs of this machine: paths, the shim, cgroups, networks and images.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use berth_base::{
    blocking::{blocking, spawn_blocking},
    config::{Config, Driver},
    layout::Layout,
    observe::METRICS,
    reserve::Reserve,
    trash,
};
use berth_image::{
    CredentialProviders, CredentialSources, Disk, Images, Observer, Options, StoreLayout,
};

use crate::{
    cdi,
    cgroup::{self, Devices, Resources},
    handlers::Handlers,
    mount_points::MountPoints,
    network::Networks,
    security::apparmor::AppArmor,
    security::selinux::SeLinux,
    shim::{Placeholder, Program},
};

/// This machine. It is made once, at start-up, and shared by everything that serves requests.
#[derive(Debug)]
pub struct Host {
    pub layout: Layout,
    pub shim: Program,
    pub cgroups: cgroup::Hierarchies,
    /// The connection to systemd, with the systemd cgroup driver only.
    scopes: Option<cgroup::Scopes>,
    pub apparmor: AppArmor,
    pub selinux: SeLinux,
    pub handlers: Handlers,
    pub cdi_dirs: Vec<PathBuf>,
    pub networks: Arc<Networks>,
    pub images: Arc<Images>,
    pub mount_points: MountPoints,
    /// Disk space that is set aside for what must be written even when the disk is full.
    pub reserve: Arc<Reserve>,
    /// Whether this machine can make user namespaces for pods (KEP 127).
    pub user_namespaces: bool,
    /// /proc/sys/kernel/random/boot_id. A record with another one speaks of processes and
    /// namespaces that are gone.
    pub boot_id: String,
    /// Held by the thread that waits for the disks, for `check_disks`.
    checking_disks: Arc<tokio::sync::Mutex<()>>,
}

/// The id of this boot, which the kernel draws at random (random(4)).
pub fn boot_id() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    Ok(text.trim().to_owned())
}

/// How long the disks may take to answer a Status.
const DISK_PATIENCE: Duration = Duration::from_secs(2);

impl Host {
    /// Whether a file of this machine describes devices of a kind, as in `nvidia.com/gpu`.
    pub fn has_devices(&self, kind: &str) -> bool {
        cdi::has_kind(&self.cdi_dirs, kind)
    }

    /// Whether anything could be started at all.
    ///
    /// # Errors
    /// A disk is read-only, gone, or does not answer.
    pub async fn check_disks(&self) -> anyhow::Result<()> {
        let check = async {
            // One at a time: on a disk that hangs each one would keep a thread.
            let one_at_a_time = self.checking_disks.clone().lock_owned().await;
            let layout = self.layout.clone();
            spawn_blocking(move || {
                let _one_at_a_time = one_at_a_time;
                layout.check_writable()
            })
            .await?
        };
        tokio::time::timeout(DISK_PATIENCE, check).await.with_context(|| {
            let seconds = DISK_PATIENCE.as_secs();
            format!("{} has not answered for {seconds} s", self.layout.root.display())
        })?
    }

    /// Makes the directories and finds out what this machine can do.
    ///
    /// # Errors
    /// Whatever keeps the daemon from serving any pod: no shim program, a directory that cannot be
    /// made, no systemd with the systemd driver.
    pub async fn new(config: &Config) -> anyhow::Result<Self> {
        let layout = Layout { root: config.root.clone(), state: config.state.clone() };
        for directory in [layout.sandboxes(), layout.containers(), layout.mount_points()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let boot_id = boot_id()?;
        let reserve = Reserve::open(&layout);
        let shim = Program::load(&Program::path()?)?;
        // By trying: whether idmapped mounts work depends on the file system of the containers.
        let probed = shim.probe(&layout.containers()).await;
        if let Err(error) = &probed {
            tracing::info!("pods cannot have user namespaces on this machine: {error:#}");
        }
        Ok(Self {
            user_namespaces: probed.is_ok(),
            shim,
            cgroups: cgroup::Hierarchies::detect(config.cgroup.driver),
            scopes: match config.cgroup.driver {
                Driver::Cgroupfs => None,
                Driver::Systemd => {
                    let scopes = cgroup::Scopes::connect().await;
                    Some(
                        scopes.context(
                            "cgroup.driver is \"systemd\", and systemd cannot be reached",
                        )?,
                    )
                }
            },
            apparmor: AppArmor::detect(),
            selinux: SeLinux::detect(),
            handlers: Handlers::new(&config.handlers),
            cdi_dirs: config.cdi.spec_dirs.clone(),
            networks: Networks::new(&config.cni, &layout)?,
            images: Arc::new(blocking(|| open_images(config, &layout, &boot_id, &reserve))?),
            mount_points: MountPoints::default(),
            reserve,
            boot_id,
            checking_disks: Arc::default(),
            layout,
        })
    }

    /// Makes the cgroup `path` with its limits.
    ///
    /// With the systemd driver a placeholder process is returned, which is in the cgroup: systemd
    /// makes no scope without a process, and removes one that is empty. The caller keeps it until
    /// the first real process is in the cgroup.
    pub async fn make_cgroup(
        &self,
        path: &str,
        resources: Resources,
        devices: Devices,
    ) -> anyhow::Result<Option<Placeholder>> {
        let mut placeholder = None;
        // systemd makes the directory, and berth the limits that systemd does not know.
        if let Some(scopes) = &self.scopes {
            let process = self.shim.hold()?;
            scopes.start(path, process.pid()?, &resources).await?;
            placeholder = Some(process);
        }
        let cgroups = self.cgroups.clone();
        let path = path.to_owned();
        spawn_blocking(move || cgroups.create(&path, &resources, &devices)).await??;
        Ok(placeholder)
    }

    /// Changes the limits of a cgroup in use: all of them, or none.
    ///
    /// # Errors
    /// The kernel or systemd refused a limit. All of them are as before then.
    pub async fn update_cgroup(
        &self,
        path: &str,
        before: &Resources,
        after: Resources,
    ) -> anyhow::Result<()> {
        // systemd writes the limits that it knows whenever it is reloaded, so it has to know
        // the new ones, too.
        if let Some(scopes) = &self.scopes {
            scopes.update(path, &after).await?;
        }
        let cgroups = self.cgroups.clone();
        let own_path = path.to_owned();
        let wanted = after.clone();
        let update = move || cgroups.update(&own_path, &wanted);
        let updated = spawn_blocking(update).await?;
        if let (Err(_), Some(scopes)) = (&updated, &self.scopes) {
            scopes.revert(path, before, &after).await?;
        }
        updated
    }

    /// Kills all processes in the cgroup `path` and removes it. Success when it is not there.
    pub async fn destroy_cgroup(&self, path: &str) -> anyhow::Result<()> {
        let cgroups = self.cgroups.clone();
        let own_path = path.to_owned();
        // In a thread for blocking work: a process in an uninterruptible sleep keeps it waiting.
        spawn_blocking(move || cgroups.destroy(&own_path)).await??;
        match &self.scopes {
            // systemd removes a scope once its last process has ended, except for one in which
            // there never was any.
            Some(scopes) if self.cgroups.exists(path) => scopes.stop(path).await,
            _ => Ok(()),
        }
    }
}

/// The metrics of pulls.
const PULLS: Observer = Observer {
    pull_ended: |took, succeeded| METRICS.pull(took, succeeded),
    layer_reused: || METRICS.layer("reused"),
    layer_pulled: || METRICS.layer("pulled"),
    bytes_received: |bytes| {
        METRICS.pull_bytes.inc_by(bytes);
    },
};

/// Opens the image store. The image crate imports nothing of the daemon, so everything that it
/// needs is handed over here, as values and as functions.
fn open_images(
    config: &Config,
    layout: &Layout,
    boot_id: &str,
    reserve: &Arc<Reserve>,
) -> anyhow::Result<Images> {
    let store = StoreLayout { images: layout.images(), layers: layout.layers() };
    let trash = layout.clone();
    let reserve = reserve.clone();
    let disk = Disk {
        discard: Arc::new(move |path| trash::discard(&trash, path)),
        with_room: Arc::new(move |write| reserve.with_room(write)),
    };
    let registry = &config.registry;
    let providers = registry.credential_providers.as_ref();
    let options = Options {
        registry_config: registry.config_path.clone(),
        credentials: CredentialSources {
            auth_file: registry.auth_file.clone(),
            providers: providers.map(|providers| CredentialProviders {
                config: providers.config.clone(),
                bin_dir: providers.bin_dir.clone(),
            }),
        },
        stall: Duration::from_secs(registry.stall_seconds.get()),
        push_compression: registry.push_compression,
        signature_policy: registry.signature_policy.clone(),
        pinned: config.pinned_images.clone(),
    };
    Images::open(store, disk, boot_id, options, PULLS)
}
