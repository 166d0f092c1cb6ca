//! The runtimes that are compared, in one machine of the tests, with a registry.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::v1;
use berth_tests::{Containerd, Cri, Daemon, DockerRegistry, Image, Machine, busybox, processes};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{about, options::Options, report::BERTH};

/// Dropped in this order: daemons first.
pub(crate) struct Rig {
    pub(crate) targets: Vec<Target>,
    pub(crate) registry: DockerRegistry,
    /// The name of a small image, which all have pulled.
    pub(crate) image: String,
    pub(crate) machine: Machine,
}

/// One runtime.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) cri: Cri,
    process: Process,
}

enum Process {
    /// None while it is restarted.
    Berth(Option<Daemon>),
    Containerd(Containerd),
    /// Runs elsewhere: no memory, no CPU time, no restart.
    Foreign,
}

impl Rig {
    pub(crate) async fn start(options: &Options) -> Result<Self> {
        let machine = Machine::new();
        let registry = DockerRegistry::start(&machine).await;
        let image = registry.push(&machine, "busybox", "1", &Image::busybox());
        let daemon = machine.start().await;
        let mut targets =
            vec![Target { name: BERTH, cri: daemon.cri(), process: Process::Berth(Some(daemon)) }];
        if let Some(socket) = &options.peer {
            let cri = Cri::connect(socket);
            targets.push(Target { name: "peer", cri, process: Process::Foreign });
        } else if !options.alone {
            let command = ["/bin/sleep", "1000000"];
            let pause = Image::simple(busybox(), &command);
            let pause = registry.push(&machine, "pause", "1", &pause);
            let containerd = Containerd::start(&machine, &network(&machine), &pause).await;
            let cri = containerd.cri();
            targets.push(Target {
                name: "containerd",
                cri,
                process: Process::Containerd(containerd),
            });
        }
        for target in &targets {
            target.cri.pull(&image).await?;
        }
        Ok(Self { targets, registry, image, machine })
    }

    pub(crate) async fn versions(&self) -> Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        for target in &self.targets {
            let version = match target.process {
                Process::Containerd(_) => about::peer()?,
                _ => {
                    let request = v1::VersionRequest::default();
                    let version = target.cri.runtime.clone().version(request).await?;
                    version.into_inner().runtime_version
                }
            };
            versions.insert(target.name.to_owned(), version);
        }
        Ok(versions)
    }
}

impl Target {
    pub(crate) fn is_berth(&self) -> bool {
        self.name == BERTH
    }

    /// The daemon, where the bench may look at it.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Berth(daemon) => daemon.as_ref().map(|daemon| daemon.pid() as u32),
            Process::Containerd(containerd) => Some(containerd.pid()),
            Process::Foreign => None,
        }
    }

    pub(crate) fn shims(&self, machine: &Machine) -> Vec<u32> {
        let marker = machine.dir.path().display().to_string();
        match self.process {
            Process::Berth(_) => processes(&marker, "berth-shim"),
            Process::Containerd(_) => processes(&marker, "containerd-shim"),
            Process::Foreign => Vec::new(),
        }
    }

    /// Kills the daemon and starts it again; returns how long it takes until it lists as many
    /// running containers. None where the daemon is not the bench's own.
    pub(crate) async fn restart(
        &mut self,
        machine: &Machine,
        containers: usize,
    ) -> Result<Option<Duration>> {
        let begun = Instant::now();
        match &mut self.process {
            Process::Berth(daemon) => {
                let old = daemon.take().context("it runs")?;
                old.signal(Signal::SIGKILL);
                old.wait();
                let (new, cri) = machine.launch(&[]);
                *daemon = Some(new);
                self.cri = cri;
            }
            Process::Containerd(containerd) => {
                containerd.restart(machine);
                self.cri = containerd.cri();
            }
            Process::Foreign => return Ok(None),
        }
        while self.running().await.unwrap_or_default() != containers {
            ensure!(begun.elapsed() < PATIENCE, "{} does not come back", self.name);
            // Polled: nobody tells when a socket is served.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Some(begun.elapsed()))
    }

    /// The number of containers that it says are running.
    async fn running(&self) -> Result<usize> {
        let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let filter = v1::ContainerFilter { state: Some(state), ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.cri.runtime.clone().list_containers(request).await?.into_inner().containers.len())
    }
}

/// How long a daemon may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Upstream's bridge with the settings of the built-in network.
fn network(machine: &Machine) -> Value {
    let subnet = json!([[{ "subnet": "10.89.0.0/16" }]]);
    let ipam =
        json!({ "type": "host-local", "ranges": subnet, "dataDir": machine.path("host-local") });
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        "ipMasq": true,
        "ipMasqBackend": "nftables",
        "ipam": ipam,
    });
    json!({ "cniVersion": "1.0.0", "name": "peer", "plugins": [bridge] })
}

/// CreateContainer with the pod's configuration in the request, as the kubelet sends it and
/// containerd requires it.
pub(crate) async fn create(
    cri: &Cri,
    sandbox: &str,
    pod: &v1::PodSandboxConfig,
    config: v1::ContainerConfig,
) -> Result<String> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    Ok(Box::pin(cri.runtime.clone().create_container(request)).await?.into_inner().container_id)
}
