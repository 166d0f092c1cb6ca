//! containerd with runc, as a peer to run the same pods: in the machine's namespaces, with
//! directories of its own. `hack/tools/build peer` builds both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Cri, Machine, binary, eventually};

/// A running containerd. It is killed when this is dropped, together with the shims that a failed
/// test leaves.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    socket: PathBuf,
    marker: String,
}

/// The directory of the programs that `hack/tools/build` makes.
pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/bin")
}

impl Containerd {
    /// Starts containerd with a conf list as its network, whose plugins may be upstream's and
    /// berth's, and with the name of an image for its pause containers.
    ///
    /// # Panics
    /// When it does not serve within 20 seconds.
    pub async fn start(machine: &Machine, network: &Value, pause: &str) -> Self {
        let bin = tools().canonicalize().expect("hack/tools/build peer");
        let own = binary("berth-bridge").canonicalize().expect("it was built");
        let own = own.parent().expect("it has a directory");
        let root = machine.path("containerd");
        let socket = machine.path("containerd.sock");
        let conf = machine.path("containerd-net.d");
        fs::create_dir_all(&conf).expect("make a directory");
        fs::write(conf.join("10-peer.conflist"), network.to_string()).expect("write the network");
        let config = format!(
            "version = 3\nroot = {root:?}\nstate = {:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [{bin:?}, {own:?}]\nconf_dir = {conf:?}\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n",
            machine.path("containerd-state"),
        );
        let path = machine.path("containerd.toml");
        fs::write(&path, config).expect("write the configuration");
        let child = launch(machine, &bin);
        let started = Self { child, socket, marker: machine.dir.path().display().to_string() };
        let cri = started.cri();
        eventually("containerd, see containerd.log", async || cri.serving().await.is_ok()).await;
        started
    }

    pub fn cri(&self) -> Cri {
        Cri::connect(&self.socket)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the daemon and starts another one with the same pods; does not wait until it serves.
    ///
    /// # Panics
    /// The programs are gone.
    pub fn restart(&mut self, machine: &Machine) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = launch(machine, &tools().canonicalize().expect("they were there"));
    }
}

fn launch(machine: &Machine, bin: &Path) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(machine.path("containerd.log"))
        .expect("open the log");
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    machine
        .command(bin.join("containerd"))
        .args(["--config".as_ref(), machine.path("containerd.toml").as_os_str()])
        // containerd looks for its shim and for runc in PATH.
        .env("PATH", search)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start containerd")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims outlive it by design.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes(&self.marker, "containerd-shim") {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

/// Pids of all processes of a program that have `marker` in their command line.
pub fn processes(marker: &str, program: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let first = command.split(' ').next().unwrap_or_default();
        (first.ends_with(program) || first.contains(&format!("{program}-")))
            && command.contains(marker)
    };
    pids.filter(ours).collect()
}
