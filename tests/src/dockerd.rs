//! The docker CLI's own daemon as a peer: in the machine's namespaces, with directories of its own.
//! `hack/tools/build docker` builds it, with containerd, the shim and runc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Machine, containerd::processes};

const OWN_RUN_DIRECTORY: &str = "mkdir -p /run/docker && mount -t tmpfs tmpfs /run/docker";

/// A running dockerd. When this is dropped it is killed, with its containerd and the shims; the
/// containers go with the machine's cgroups.
#[derive(Debug)]
pub struct Dockerd {
    child: Child,
    socket: PathBuf,
    marker: String,
}

/// The directory of the programs that `hack/tools/build docker` makes.
pub fn docker_tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/docker")
}

impl Dockerd {
    /// Starts one, and does not wait until it serves.
    ///
    /// # Panics
    /// It has not been built.
    pub fn launch(machine: &Machine) -> Self {
        let bin = docker_tools().canonicalize().expect("hack/tools/build docker");
        let socket = machine.path("docker.sock");
        let config = machine.path("daemon.json");
        fs::write(&config, "{}").expect("write the configuration");
        // Whatever its options say, it keeps sockets of plugins below /run/docker: here that is the
        // machine's own.
        machine.output("sh", &["-c", OWN_RUN_DIRECTORY]);
        let log = fs::File::create(machine.path("dockerd.log")).expect("make the log");
        let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let child = machine
            .command(bin.join("dockerd"))
            .arg("--config-file")
            .arg(config)
            .arg("--data-root")
            .arg(machine.path("docker"))
            .arg("--exec-root")
            .arg(machine.path("docker-exec"))
            .arg("--pidfile")
            .arg(machine.path("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--cgroup-parent")
            .arg(format!("/{}", machine.cgroup_parent))
            .env("PATH", search)
            .env("HOME", machine.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start dockerd");
        Self { child, socket, marker: machine.dir.path().display().to_string() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a dockerd of this machine has there stays: only an empty directory can be removed.
        let _ = fs::remove_dir("/run/docker");
        for program in ["containerd", "containerd-shim-runc-v2", "docker-proxy"] {
            for pid in processes(&self.marker, program) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
    }
}
