//! The daemon on a test's machine: its configuration, its start, and its end.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    capability::{Capability, has_systemd_scopes},
    client::Cri,
    machine::Machine,
    programs::binary,
};

#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Starts a daemon with the machine's directory and waits until it serves.
    pub async fn start(&self) -> Daemon {
        let (daemon, cri) = self.launch(&[]);
        cri.serving()
            .await
            .unwrap_or_else(|error| panic!("the daemon does not serve: {error}\n{}", daemon.log()));
        daemon
    }

    /// Starts a daemon with further arguments, and does not wait until it serves.
    pub fn launch(&self, arguments: &[&str]) -> (Daemon, Cri) {
        let socket = self.path("berth.sock");
        let log = self.path("berthd.log");
        let file = File::options().create(true).append(true).open(&log).expect("open the log");
        let config = self.write_config();
        let program = self
            .programs
            .as_ref()
            .map_or_else(|| binary("berthd"), |directory| directory.join("berthd"));
        let child = self
            // Tests send it signals that whoever runs the tests may ignore, as under nohup(1), and
            // an ignored signal stays ignored across execve(2).
            .command("env")
            .arg("--default-signal=HUP,INT,QUIT,ABRT,TERM")
            .arg(program)
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(self.path("root"))
            .arg("--state")
            .arg(self.path("state"))
            .arg("--listen")
            .arg(&socket)
            .args(arguments)
            // Programs that the test provides are found first.
            .env(
                "PATH",
                format!(
                    "{}:{}",
                    self.path("bin").display(),
                    std::env::var("PATH").unwrap_or_default()
                ),
            )
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start berthd");
        let cri = Cri::connect(&socket);
        (Daemon { child, socket, log }, cri)
    }

    /// Writes the daemon's configuration, unless it is there: the daemon reads it at every start,
    /// and a test may have written one of its own. Returns its path.
    fn write_config(&self) -> PathBuf {
        let path = self.path("config.toml");
        if !path.exists() {
            let own = |name: &str| format!("{:?}", self.path(name).display().to_string());
            let lines = [
                format!("images_dir = {}", own("images")),
                "pinned_images = [\"*/pinned/*\"]".to_owned(),
                "[cni]".to_owned(),
                format!("conf_dir = {}", own("net.d")),
                format!("cache_dir = {}", own("cni-results")),
                format!("bin_dirs = [{}, \"/usr/lib/cni\"]", own("cni-bin")),
                format!("timeout_seconds = {}", self.plugin_seconds),
                "[cdi]".to_owned(),
                format!("spec_dirs = [{}]", own("cdi")),
                "[registry]".to_owned(),
                format!("config_path = {}", own("certs.d")),
                format!("auth_file = {}", own("auth.json")),
                "stall_seconds = 2".to_owned(),
                self.config.replace("$DIR", &self.dir.path().display().to_string()),
                if has_systemd_scopes() { SYSTEMD.to_owned() } else { String::new() },
            ];
            fs::write(&path, lines.join("\n") + "\n").expect("write the configuration");
        }
        if !self.path("net.d").exists() && !Capability::Nat.is_there() {
            fs::create_dir(self.path("net.d")).expect("make a directory");
            let state = self.path("state").display().to_string();
            let network = WITHOUT_NAT.replace("$STATE", &state);
            fs::write(self.path("net.d/10-without-nat.conflist"), network)
                .expect("write the network");
        }
        path
    }
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn cri(&self) -> Cri {
        Cri::connect(&self.socket)
    }

    /// Ends the daemon, each time by another signal. Whatever ends it must make no difference to
    /// what is kept.
    pub fn kill(mut self) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let signal = ENDS[NEXT.fetch_add(1, Ordering::Relaxed) % ENDS.len()];
        self.signal(signal);
        let _ = self.child.wait();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the daemon has ended.
    pub fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait for berthd")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal berthd");
    }
}

/// The signals that end a daemon; a panic ends in SIGABRT.
const ENDS: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGKILL,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGABRT,
];

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SYSTEMD: &str = "[cgroup]\ndriver = \"systemd\"\n";
/// The built-in network of berthd without masquerading, for kernels that lack NAT.
const WITHOUT_NAT: &str = r#"{ "cniVersion": "1.1.0", "name": "berth", "plugins": [
    { "type": "berth-bridge", "bridge": "berth0", "isDefaultGateway": true, "ipMasq": false,
      "capabilities": { "bandwidth": true },
      "ipam": { "type": "berth-local", "subnet": "10.88.0.0/16", "dataDir": "$STATE/ipam" } }
] }"#;
