//! A peer: containerd with runc, in the machine's namespaces and on a directory of its own. Built by `hack/tools/build peer`.

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

/// Killed at the end, with the shims of a run that failed.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    socket: PathBuf,
    marker: String,
}

/// Of a tool that `hack/tools/build` makes.
pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/bin")
}

impl Containerd {
    /// With a conf list as its network, whose plugins are those of upstream and of berth, and an image for its pauses.
    ///
    /// # Panics
    /// When it does not serve within 20 seconds.
    pub async fn start(machine: &Machine, network: &Value, pause: &str) -> Self {
        let bin = tools().canonicalize().expect("hack/tools/build peer");
        let own = binary("berth-bridge").canonicalize().expect("it was built");
        let own = own.parent().expect("it has a directory");
        let (root, socket) = (machine.path("containerd"), machine.path("containerd.sock"));
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
        let log = fs::File::create(machine.path("containerd.log")).expect("make the log");
        let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let child = machine
            .command(bin.join("containerd"))
            .args(["--config".as_ref(), path.as_os_str()])
            .env("PATH", search)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start containerd");
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
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes(&self.marker, "containerd-shim") {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

/// Pids of a program whose command line has `marker` in it.
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
        first.ends_with(program) || first.contains(&format!("{program}-")) && command.contains(marker)
    };
    pids.filter(ours).collect()
}
