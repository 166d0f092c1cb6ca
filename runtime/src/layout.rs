//! Every path on the node. Persistent things below the root, sockets and pins below the state directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::Access;

use crate::id::{ContainerId, SandboxId};

/// Where `ip netns` and the agents of CNI plugins look.
const NETNS: &str = "/var/run/netns";

/// Of what is below the root; another number when an older daemon would misread it.
pub(crate) const VERSION: &str = "1";

/// Extension of a directory that is not renamed yet.
pub(crate) const HALF_MADE: &str = "tmp";

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Layout {
    /// Locked for as long as a daemon uses this root.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Which `VERSION` the root has.
    pub(crate) fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// Renamed here, then deleted at leisure.
    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// # Errors
    /// A disk that is read-only or gone: nothing could be started.
    pub(crate) fn check_writable(&self) -> anyhow::Result<()> {
        for directory in [&self.root, &self.state] {
            rustix::fs::access(directory, Access::WRITE_OK)
                .with_context(|| format!("{} cannot be written", directory.display()))?;
        }
        Ok(())
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// Where a container is written before it is renamed.
    pub(crate) fn half_made(&self, id: &ContainerId) -> PathBuf {
        self.container(id).with_extension(HALF_MADE)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Manifests and configs by digest, as an OCI image layout has them.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.images().join("blobs/sha256")
    }

    pub(crate) fn image_index(&self) -> PathBuf {
        self.images().join("index.json")
    }

    /// What pulls that are not finished need.
    pub(crate) fn pulls(&self) -> PathBuf {
        self.images().join("pulls")
    }

    /// Blobs of which not everything came yet.
    pub(crate) fn partial(&self) -> PathBuf {
        self.images().join("partial")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// Pins of a pod: `ipc`, `uts`, `pid`, `user`, and its /dev/shm.
    pub(crate) fn sandbox_state(&self, id: &SandboxId) -> PathBuf {
        self.pins().join(id.as_str())
    }

    /// `--root` of other OCI runtimes; each container has a directory in it.
    pub(crate) fn oci(&self) -> PathBuf {
        self.state.join("oci")
    }

    /// The directory of `shim.sock`.
    pub(crate) fn container_state(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }

    /// The pinned network namespace of a pod; `name` is `cni-<uuid>`.
    pub(crate) fn netns(name: &str) -> PathBuf {
        Path::new(NETNS).join(name)
    }

    /// Of pods to the network, by sandbox: there for as long as a DEL is owed.
    pub(crate) fn attachments(&self) -> PathBuf {
        self.root.join("networks")
    }

    pub(crate) fn attachment(&self, sandbox: &str) -> PathBuf {
        self.attachments().join(sandbox)
    }

    /// The pods' networks, as the kubelet told them last.
    pub(crate) fn pod_cidr(&self) -> PathBuf {
        self.root.join("pod-cidr.json")
    }

    pub(crate) fn ipam(&self) -> PathBuf {
        self.state.join("ipam")
    }
}

/// Files of a sandbox's directory.
pub(crate) mod sandbox {
    pub(crate) const META: &str = "meta.json";
    /// Written last by a successful run; without it the sandbox is half-made.
    pub(crate) const READY: &str = "ready.json";
    /// There once it was stopped.
    pub(crate) const STOPPED: &str = "stopped";
    pub(crate) const HOSTS: &str = "hosts";
    pub(crate) const RESOLV_CONF: &str = "resolv.conf";
    pub(crate) const HOSTNAME: &str = "hostname";
    /// The container's directory of the built-in pause, where the pod shares its PID namespace.
    pub(crate) const PAUSE: &str = "pause";
}

/// Files of a container's directory that the daemon keeps beside those of the shim's contract.
pub(crate) mod container {
    pub(crate) const META: &str = "meta.json";
    /// The deadline of a stop in progress, nanoseconds since the epoch.
    pub(crate) const STOP: &str = "stop.json";
}
