//! Every path on the node: what persists is below the root; sockets and pinned namespaces, which
//! end with a boot, are below the state directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::id::{ContainerId, SandboxId};

/// Where `ip netns` and the agents of CNI plugins look for network namespaces.
const NETNS: &str = "/var/run/netns";

/// The version of what is below the root and below the state directory. It goes up when an older
/// daemon would misread that; the documentation of `berth_shim` says what such a change is. Builds
/// of one version may take turns on a root in any order.
pub const VERSION: u32 = 1;

/// The extension of a container's directory while it is being written. A rename completes it.
pub const INCOMPLETE: &str = "tmp";

#[derive(Clone, Debug)]
pub struct Layout {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Layout {
    /// Locked for as long as a daemon uses this root.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Where a directory, the root or that of the state, has its `VERSION`.
    pub fn version_of(directory: &Path) -> PathBuf {
        directory.join("version")
    }

    /// Made shorter when a record finds no room.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// What is deleted is renamed to here first.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Whether anything could be started at all. May wait for a disk.
    ///
    /// # Errors
    /// A disk is read-only or gone.
    pub fn check_writable(&self) -> anyhow::Result<()> {
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        // By a write that needs no room. access(2) asks only how the disk was mounted, and a file
        // system that has met an error in its journal refuses writes without being remounted.
        rustix::fs::utimensat(CWD, self.lock(), &now, AtFlags::empty()).with_context(|| {
            let root = self.root.display();
            format!("{root} cannot be written: look at its disk (dmesg), then mount it writable")
        })?;
        rustix::fs::access(&self.state, Access::WRITE_OK)
            .with_context(|| format!("{} cannot be written", self.state.display()))
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// Where a container is written before it is renamed.
    pub fn incomplete(&self, id: &ContainerId) -> PathBuf {
        self.container(id).with_extension(INCOMPLETE)
    }

    /// The records without which a container is not listed after a reboot: its own, and those of
    /// its pod.
    pub fn records_of(&self, container: &ContainerId, sandbox: &SandboxId) -> [PathBuf; 3] {
        let sandbox = self.sandbox(sandbox);
        [
            sandbox.join(sandbox::META),
            sandbox.join(sandbox::READY),
            self.container(container).join(container::META),
        ]
    }

    /// The containers of the Docker Engine API. Each run of one is a sandbox and a container with its
    /// id.
    pub fn engine_containers(&self) -> PathBuf {
        self.root.join("engine/containers")
    }

    pub fn engine_container(&self, id: &str) -> PathBuf {
        self.engine_containers().join(id)
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The layers with the places of mounts, one for each set of mounts that containers have.
    pub fn mount_points(&self) -> PathBuf {
        self.root.join("mount-points")
    }

    pub fn pins(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// The pinned namespaces of a pod, `ipc`, `uts`, `pid` and `user`, and its /dev/shm.
    pub fn sandbox_state(&self, id: &SandboxId) -> PathBuf {
        self.pins().join(id.as_str())
    }

    /// There once a pod was stopped whose own directory could not be written.
    pub fn stopped(&self, id: &SandboxId) -> PathBuf {
        self.all_stopped().join(id.as_str())
    }

    pub fn all_stopped(&self) -> PathBuf {
        self.state.join("stopped")
    }

    /// Where the socket of a pod's pause process is.
    pub fn pause_state(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_state(id).join(sandbox::PAUSE)
    }

    /// What `berth-dns` is told of the engine's networks and of the containers on them, and what it
    /// answers.
    pub fn names(&self) -> PathBuf {
        self.state.join("names")
    }

    /// The directory that other OCI runtimes get as `--root`.
    pub fn oci(&self) -> PathBuf {
        self.state.join("oci")
    }

    /// The directory of `shim.sock`.
    pub fn container_state(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }

    /// The pinned network namespace of a pod; `name` is `cni-<uuid>`.
    pub fn netns(name: &str) -> PathBuf {
        Path::new(NETNS).join(name)
    }

    /// The attachments of pods to networks, one file for each interface. Each is there for as long
    /// as its DEL is pending.
    pub fn attachments(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// That of a pod's first interface has the sandbox's id for its name.
    pub fn attachment(&self, key: &str) -> PathBuf {
        self.attachments().join(key)
    }

    /// The networks that the kubelet assigned to the node's pods last.
    pub fn pod_cidr(&self) -> PathBuf {
        self.root.join("pod-cidr.json")
    }

    pub fn ipam(&self) -> PathBuf {
        self.state.join("ipam")
    }
}

/// Files of a sandbox's directory.
pub mod sandbox {
    pub const META: &str = "meta.json";
    /// Written last by a successful run; without it the sandbox is incomplete.
    pub const READY: &str = "ready.json";
    /// There once the sandbox was stopped.
    pub const STOPPED: &str = "stopped";
    pub const HOSTS: &str = "hosts";
    pub const RESOLV_CONF: &str = "resolv.conf";
    pub const HOSTNAME: &str = "hostname";
    /// The container's directory of the built-in pause, where the pod shares its PID namespace.
    pub const PAUSE: &str = "pause";
    /// In the state directory: there once another sandbox has joined its network namespace.
    pub const JOINED: &str = "joined";
}

/// Files of a container's directory that the daemon keeps beside those of the shim's contract.
pub mod container {
    pub const META: &str = "meta.json";
    /// The deadline of a stop in progress, nanoseconds since the epoch.
    pub const STOP: &str = "stop.json";
}
