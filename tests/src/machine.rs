//! A machine of the test's own: network and mount namespaces, a directory, a cgroup parent, and the daemon in them.

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Cri;

/// Its namespaces live as long as `holder`; what is in them goes with it, so `assert_clean` looks before.
#[derive(Debug)]
pub struct Machine {
    pub dir: TempDir,
    holder: Child,
    /// For pods' `cgroup_parent`, without a leading slash.
    pub cgroup_parent: String,
    /// More of the daemon's environment.
    pub environment: Vec<(String, String)>,
    /// More of the daemon's configuration: keys of `[registry]`, then other sections.
    pub config: String,
    /// For a CNI plugin.
    pub plugin_seconds: u32,
}

#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// # Panics
    /// Without root, or without the programs `unshare`, `nsenter`, `mount` and `ip`.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces and cgroups: run them as root");
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("make a directory");
        let script = "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up && echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let mut ready = [0; 6];
        holder.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("namespaces: unshare, mount or ip failed");
        let mut cgroup_parent = dir.path().file_name().expect("has a name").to_string_lossy().into_owned();
        if in_guest() {
            // A dash in a slice's name is a level of its own.
            cgroup_parent = format!("{}.slice", cgroup_parent.replace('-', ""));
        }
        Self { dir, holder, cgroup_parent, environment: Vec::new(), config: String::new(), plugin_seconds: 60 }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The network of the pods from now on: a conf list.
    pub fn write_network(&self, list: &Value) {
        let directory = self.path("net.d");
        fs::create_dir_all(&directory).expect("make a directory");
        // Complete at once: the daemon may be reading.
        let draft = directory.join("draft");
        fs::write(&draft, list.to_string()).expect("write the network");
        fs::rename(draft, directory.join("00-test.conflist")).expect("write the network");
    }

    /// A CNI plugin that is a shell script, replaced at once if it is there.
    pub fn write_plugin(&self, name: &str, script: &str) {
        let directory = self.path("cni-bin");
        fs::create_dir_all(&directory).expect("make a directory");
        let draft = directory.join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).expect("write a plugin");
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("make it a program");
        fs::rename(draft, directory.join(name)).expect("write a plugin");
    }

    /// `program` in the machine's namespaces; its pid is its own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "--"]).arg(program);
        command
    }

    /// Runs `work` in the machine's network namespace: its sockets stay in it.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Self::inside(Path::new(&format!("/proc/{}/ns/net", self.holder.id())), work)
    }

    /// Runs `work` in a network namespace that is pinned in the machine: a pod's, or one of `ip netns add`.
    pub fn in_netns<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        Self::inside(Path::new(&format!("/proc/{}/root/run/netns/{name}", self.holder.id())), work)
    }

    fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(namespace).expect("open the namespace");
        let result = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            thread.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a daemon on the machine's directory and waits until it serves.
    pub async fn start(&self) -> Daemon {
        let (daemon, cri) = self.launch(&[]);
        cri.serving().await.unwrap_or_else(|error| panic!("the daemon does not serve: {error}\n{}", daemon.log()));
        daemon
    }

    /// Starts a daemon with more arguments, without waiting.
    pub fn launch(&self, arguments: &[&str]) -> (Daemon, Cri) {
        let socket = self.path("berth.sock");
        let log = self.path("berthd.log");
        let file = File::options().create(true).append(true).open(&log).expect("open the log");
        // Read by every start; a test may have written its own before.
        let config = self.path("config.toml");
        if !config.exists() {
            let text = format!(
                "images_dir = {:?}\npinned_images = [\"*/pinned/*\"]\n[cni]\nconf_dir = {:?}\ncache_dir = {:?}\nbin_dirs = [{:?}, \"/usr/lib/cni\"]\ntimeout_seconds = {}\n[cdi]\nspec_dirs = [{:?}]\n[registry]\nconfig_path = {:?}\nauth_file = {:?}\nstall_seconds = 2\n{}\n",
                self.path("images").display().to_string(),
                self.path("net.d").display().to_string(),
                self.path("cni-results").display().to_string(),
                self.path("cni-bin").display().to_string(),
                self.plugin_seconds,
                self.path("cdi").display().to_string(),
                self.path("certs.d").display().to_string(),
                self.path("auth.json").display().to_string(),
                self.config
            );
            fs::write(&config, text + if in_guest() { GUEST_CONFIG } else { "" }).expect("write the configuration");
        }
        if in_guest() && !self.path("net.d").exists() {
            fs::create_dir(self.path("net.d")).expect("make a directory");
            let network = GUEST_NETWORK.replace("$STATE", &self.path("state").display().to_string());
            fs::write(self.path("net.d/10-guest.conflist"), network).expect("write the network");
        }
        let child = self
            .command(binary("berthd"))
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(self.path("root"))
            .arg("--state")
            .arg(self.path("state"))
            .arg("--listen")
            .arg(&socket)
            .args(arguments)
            // Programs of the test's own.
            .env("PATH", format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default()))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start berthd");
        let cri = Cri::connect(&socket);
        (Daemon { child, socket, log }, cri)
    }

    /// The content of a file of a container's cgroup, named as v1 and v2 do.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn cgroup_file(&self, id: &str, (controller, v1): (&str, &str), v2: &str) -> String {
        let parent = &self.cgroup_parent;
        let leaf = if in_guest() { format!("berth-{id}.scope") } else { id.to_owned() };
        let of_v1 = format!("/sys/fs/cgroup/{controller}/{parent}/{leaf}/{v1}");
        let path =
            if fs::exists(&of_v1).unwrap_or(false) { of_v1 } else { format!("/sys/fs/cgroup/{parent}/{leaf}/{v2}") };
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
    }

    /// What the machine still has of pods, one line each.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let holder = self.holder.id();
        let own = self.dir.path().display().to_string();
        let mounts = fs::read_to_string(format!("/proc/{holder}/mounts")).expect("the holder lives");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own) || line.contains("/netns/"))
                .map(|line| format!("mount {line}")),
        );
        for directory in [
            "root/sandboxes",
            "root/containers",
            "root/trash",
            "root/networks",
            "cni-results",
            "state/sandboxes",
            "state/containers",
            "state/oci",
        ] {
            // Hidden ones are what other runtimes keep for all of their containers.
            let names = names(&self.path(directory)).into_iter().filter(|name| !name.starts_with('.'));
            left.extend(names.map(|name| format!("{directory}/{name}")));
        }
        left.extend(
            names(Path::new(&format!("/proc/{holder}/root/run/netns"))).into_iter().map(|name| format!("netns {name}")),
        );
        let reserved = names(&self.path("state/ipam/berth")).into_iter();
        let of_all = |name: &String| ["lock", "boot"].contains(&name.as_str()) || name.starts_with("last_");
        left.extend(reserved.filter(|name| !of_all(name)).map(|name| format!("address {name}")));
        let known = |name: &str| name.is_empty() || ["lo", "berth0"].contains(&name);
        let links = self.output("ip", &["-o", "link"]);
        let link =
            |line: &str| line.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default().to_owned();
        left.extend(links.lines().map(link).filter(|name| !known(name)).map(|name| format!("link {name}")));
        let rules = if in_guest() { String::new() } else { self.output("nft", &["list", "ruleset"]) };
        // The pods' networks are known once and for all; nothing is there for a single pod.
        let single = |line: &&str| line.contains("elements") && !line.contains("{ 10.88.0.0/16");
        left.extend(rules.lines().filter(single).map(|line| format!("nft {}", line.trim())));
        left.extend(cgroups(&self.cgroup_parent).into_iter().map(|path| format!("cgroup {}", path.display())));
        left.extend(self.shims().into_iter().map(|(pid, command)| format!("process {pid} {command}")));
        left
    }

    /// Everything that pods had is gone; `root/trash` is emptied in the background, so this waits for it.
    pub async fn assert_clean(&self) {
        let mut left = Vec::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while tokio::time::Instant::now() < deadline {
            left = self.leftovers();
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("left behind:\n{}", left.join("\n"));
    }

    /// Processes of this machine's shims: pid and command line.
    pub fn shims(&self) -> Vec<(i32, String)> {
        let own = self.dir.path().display().to_string();
        let mut found = Vec::new();
        for pid in names(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok()) {
            let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.starts_with("berth-shim") && command.contains(&own) {
                found.push((pid, command));
            }
        }
        found
    }

    /// Standard output of a program in the machine's namespaces.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output =
            self.command(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (pid, _) in self.shims() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let parents: Vec<PathBuf> = cgroup_roots().map(|root| root.join(&self.cgroup_parent)).collect();
        for path in &parents {
            let _ = fs::write(path.join("cgroup.kill"), "1");
        }
        if in_guest() {
            // systemd keeps units whose directories somebody else removed.
            let _ = Command::new("systemctl").args(["stop", &self.cgroup_parent]).status();
        }
        // What was killed takes a moment to leave its cgroup.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !parents.iter().all(|path| remove_cgroup(path)) && Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "cgroup v1 tells nobody that it is empty")]
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn cri(&self) -> Cri {
        Cri::connect(&self.socket)
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait for berthd")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal berthd");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this is the machine of `hack/vm`: cgroup v2 with systemd, and a kernel that cannot translate addresses.
pub fn in_guest() -> bool {
    std::env::var_os("BERTH_TEST_GUEST").is_some()
}

const GUEST_CONFIG: &str = "[cgroup]\ndriver = \"systemd\"\n";
/// What is built in, without masquerading.
const GUEST_NETWORK: &str = r#"{ "cniVersion": "1.1.0", "name": "berth", "plugins": [
    { "type": "berth-bridge", "bridge": "berth0", "isDefaultGateway": true, "ipMasq": false,
      "ipam": { "type": "berth-local", "subnet": "10.88.0.0/16", "dataDir": "$STATE/ipam" } }
] }"#;

/// What a cluster of before has: upstream's bridge, host-local, portmap, firewall, bandwidth and tuning, as Debian packages them.
pub fn upstream_network(machine: &Machine) -> Value {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.89.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": machine.path("host-local") });
    json!({ "cniVersion": "1.0.0", "name": "upstream", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall" },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        { "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } },
    ] })
}

/// One of the three that `hack/build` makes, or of BERTH_BIN.
///
/// # Panics
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/berth");
    let path = std::env::var_os("BERTH_BIN").map_or(default, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not there: run hack/build", path.display());
    path
}

/// Names in a directory, sorted; none if it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

fn cgroup_roots() -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    names(root)
        .into_iter()
        .map(move |name| root.join(name))
        .chain([root.to_owned()])
        .filter(|path| path.join("cgroup.procs").exists())
}

/// Whether `path` is gone, with everything below it.
fn remove_cgroup(path: &Path) -> bool {
    let mut directories = Vec::new();
    descend(path, &mut directories);
    directories.iter().rev().for_each(|directory| drop(fs::remove_dir(directory)));
    !path.exists()
}

/// What is below `parent` in any hierarchy.
fn cgroups(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in cgroup_roots() {
        for name in names(&root.join(parent)) {
            let path = root.join(parent).join(name);
            if path.is_dir() {
                descend(&path, &mut found);
            }
        }
    }
    found
}

/// `path` and every directory below it, parents first.
fn descend(path: &Path, found: &mut Vec<PathBuf>) {
    found.push(path.to_owned());
    for name in names(path) {
        let child = path.join(name);
        if child.is_dir() {
            descend(&child, found);
        }
    }
}
