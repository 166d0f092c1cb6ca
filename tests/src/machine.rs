//! A machine for one test: network and mount namespaces, a directory, and a cgroup parent. Tests on
//! different machines do not see each other.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    capability::has_systemd_scopes,
    cgroups::{PREFIX, cgroup_parent, cgroups, end_cgroups, names},
    daemon::Daemon,
    finish::finish,
    namespaces,
};

/// The namespaces live as long as the process `holder`. What is in them goes with it, so
/// `assert_clean` has to look before.
#[derive(Debug)]
pub struct Machine {
    pub dir: TempDir,
    holder: Child,
    /// The cgroup parent of the test's pods, without a leading slash.
    pub cgroup_parent: String,
    /// Further variables of the daemon's environment.
    pub environment: Vec<(String, String)>,
    /// Further lines of the daemon's configuration: keys of `[registry]` first, then other
    /// sections.
    pub config: String,
    /// The daemon's timeout for a CNI plugin, in seconds.
    pub plugin_seconds: u32,
    /// The directory of the daemon's programs, if it is not that of `binary`.
    pub programs: Option<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// # Panics
    /// The test does not run as root, or one of `unshare`, `nsenter`, `mount` and `ip` is missing.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make namespaces and cgroups: run them as root"
        );
        // The prefix is in the command line of every shim, by which this machine's are found.
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("make a directory");
        let holder = namespaces::hold("");
        Self {
            cgroup_parent: cgroup_parent(dir.path()),
            dir,
            holder,
            environment: Vec::new(),
            config: String::new(),
            plugin_seconds: 60,
            programs: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As `path`, for a look from outside at what is mounted there in the machine's namespace.
    pub fn inside_path(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let path = path.strip_prefix("/").unwrap_or(&path);
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(path)
    }

    /// Plays a reboot that nobody prepared, as after a power loss: every process, mount, namespace
    /// and cgroup is gone, and so is what is below /run. Files stay, and the next boot has another
    /// id.
    pub fn reboot(&mut self, daemon: Daemon) {
        drop(daemon);
        self.end_processes();
        for directory in ["state", "berth.sock"] {
            let path = self.path(directory);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        self.holder = namespaces::hold(&namespaces::next_boot(&self.path("boot_id")));
    }

    /// Sets the network of the pods that are run from now on, as a conf list.
    pub fn write_network(&self, list: &Value) {
        let directory = self.path("net.d");
        fs::create_dir_all(&directory).expect("make a directory");
        // Replaced by a rename, since the daemon may be reading it.
        let draft = directory.join("draft");
        fs::write(&draft, list.to_string()).expect("write the network");
        fs::rename(draft, directory.join("00-test.conflist")).expect("write the network");
    }

    /// Installs a shell script as a CNI plugin; one of that name is replaced atomically.
    pub fn write_plugin(&self, name: &str, script: &str) {
        let directory = self.path("cni-bin");
        fs::create_dir_all(&directory).expect("make a directory");
        let draft = directory.join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).expect("write a plugin");
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("make it a program");
        fs::rename(draft, directory.join(name)).expect("write a plugin");
    }

    /// A command that runs `program` in the machine's namespaces. nsenter(1) executes it without a
    /// fork, so the child's pid is that of the program.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--mount", "--net", "--"])
            .arg(program);
        command
    }

    /// Runs `work` in the machine's network namespace, on a thread of its own. Sockets that it
    /// makes stay in that namespace.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/proc/{}/ns/net", self.holder.id());
        namespaces::enter(Path::new(&namespace), CloneFlags::CLONE_NEWNET, work)
    }

    /// Runs `work` in a network namespace that is pinned in the machine: a pod's, or one made by
    /// `ip netns add`.
    pub fn in_netns<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/proc/{}/root/run/netns/{name}", self.holder.id());
        namespaces::enter(Path::new(&namespace), CloneFlags::CLONE_NEWNET, work)
    }

    /// Runs `work` in the machine's mount namespace, on a thread of its own.
    pub fn in_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/proc/{}/ns/mnt", self.holder.id());
        namespaces::enter(Path::new(&namespace), CloneFlags::CLONE_NEWNS, work)
    }

    /// The content of a file of a container's cgroup. For cgroup v1 it is named by controller and
    /// file, for v2 by file.
    ///
    /// # Panics
    /// There is no such file.
    pub fn cgroup_file(&self, id: &str, (controller, v1): (&str, &str), v2: &str) -> String {
        let parent = &self.cgroup_parent;
        let leaf = if has_systemd_scopes() { format!("berth-{id}.scope") } else { id.to_owned() };
        // On a hybrid host the controllers are in hierarchies of v1.
        let of_v1 = format!("/sys/fs/cgroup/{controller}/{parent}/{leaf}/{v1}");
        let path = if fs::exists(&of_v1).unwrap_or(false) {
            of_v1
        } else {
            format!("/sys/fs/cgroup/{parent}/{leaf}/{v2}")
        };
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
            .trim()
            .to_owned()
    }

    /// What is left of pods on the machine, one line for each thing: mounts, records, namespaces,
    /// addresses, links, rules, cgroups and processes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        // The mounts as the machine sees them: those of the host are none of its business.
        let holder = self.holder.id();
        let own = self.dir.path().display().to_string();
        let mounts =
            fs::read_to_string(format!("/proc/{holder}/mounts")).expect("the holder lives");
        // A disk that the test has mounted for the root is none of a pod's.
        let disks = [format!(" {own}/root "), format!(" {own}/disk ")];
        let is_disk = |line: &str| disks.iter().any(|disk| line.contains(disk));
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own) || line.contains("/netns/"))
                .filter(|line| !is_disk(line) && !line.contains(namespaces::BOOT_ID))
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
            "state/names/networks",
            "state/names/containers",
            "state/names/serving",
        ] {
            // Files with a leading dot are shared by all containers of another OCI runtime, and
            // stay.
            let names = names(&self.inside_path(directory));
            let names = names.into_iter().filter(|name| !name.starts_with('.'));
            left.extend(names.map(|name| format!("{directory}/{name}")));
        }
        left.extend(
            names(Path::new(&format!("/proc/{holder}/root/run/netns")))
                .into_iter()
                .map(|name| format!("netns {name}")),
        );
        // Files of the whole network stay: the lock, the boot, and the address that was given last.
        let reserved = names(&self.path("state/ipam/berth")).into_iter();
        let of_all =
            |name: &String| ["lock", "boot"].contains(&name.as_str()) || name.starts_with("last_");
        left.extend(reserved.filter(|name| !of_all(name)).map(|name| format!("address {name}")));
        // The bridges stay for the next pod and the next container.
        let known = |name: &str| name.is_empty() || ["lo", "berth0", "docker0"].contains(&name);
        let links = self.output("ip", &["-o", "link"]);
        let link = |line: &str| {
            line.split(": ")
                .nth(1)
                .unwrap_or_default()
                .split('@')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        left.extend(
            links.lines().map(link).filter(|name| !known(name)).map(|name| format!("link {name}")),
        );
        let rules = self.output("nft", &["list", "ruleset"]);
        // The elements for whole networks stay for the next pod. All others are of a single pod.
        let of_network =
            ["{ 10.88.0.0/16", "172.17.0.0/16", "{ 127.0.0.0/8 }", "\"berth0\"", "\"docker0\""];
        let single = |line: &&str| {
            line.contains("elements") && !of_network.iter().any(|network| line.contains(network))
        };
        left.extend(rules.lines().filter(single).map(|line| format!("nft {}", line.trim())));
        left.extend(
            cgroups(&self.cgroup_parent)
                .into_iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
        left.extend(
            self.shims()
                .into_iter()
                .chain(self.plugins())
                .chain(self.name_servers())
                .map(|(pid, command)| format!("process {pid} {command}")),
        );
        left
    }

    /// Asserts that nothing is left of pods. Deletion of files goes on in the background
    /// (`root/trash`), so this waits up to ten seconds.
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

    /// The shims of this machine, as pid and command line.
    pub fn shims(&self) -> Vec<(i32, String)> {
        let own = self.dir.path().display().to_string();
        let mut shims = processes();
        shims.retain(|(_, command)| command.starts_with("berth-shim") && command.contains(&own));
        shims
    }

    /// The name servers of this machine's containers, as pid and command line: one, or none.
    pub fn name_servers(&self) -> Vec<(i32, String)> {
        let own = self.dir.path().display().to_string();
        let mut servers = processes();
        servers.retain(|(_, command)| command.starts_with("berth-dns") && command.contains(&own));
        servers
    }

    /// The runs of berth-bridge on this machine, as pid and command line.
    fn plugins(&self) -> Vec<(i32, String)> {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = namespace(self.holder.id() as i32);
        let mut plugins = processes();
        plugins.retain(|(pid, command)| {
            command.trim_end().ends_with("/berth-bridge") && namespace(*pid) == own
        });
        plugins
    }

    /// Runs a program in the machine's namespaces, which must succeed, and returns its standard
    /// output.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program);
        let piped = command.args(arguments).stdin(Stdio::null());
        let child = piped.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let output = finish(child.unwrap_or_else(|error| panic!("{program}: {error}")));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Ends every process of the machine. Its namespaces and the mounts in them go with those.
    fn end_processes(&mut self) {
        for (pid, _) in self.shims().into_iter().chain(self.name_servers()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        end_cgroups(&self.cgroup_parent);
        // Docker's containers have a parent in common, whoever runs them.
        for id in fs::read_dir(self.path("root/engine/containers")).into_iter().flatten().flatten()
        {
            end_cgroups(&format!("docker/{}", id.file_name().display()));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that failed leaves its containers.
        self.end_processes();
    }
}

/// The network of a cluster that was set up for another runtime: upstream's bridge, host-local,
/// portmap, firewall, bandwidth and tuning, as Debian packages them.
pub fn upstream_network(machine: &Machine) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.89.0.0/16" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": machine.path("host-local"),
    });
    json!({ "cniVersion": "1.0.0", "name": "upstream", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true, "ipam": ipam },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall" },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        { "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } },
    ] })
}

/// All processes of the host, as pid and command line.
fn processes() -> Vec<(i32, String)> {
    let pids = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok());
    // A process that ends meanwhile has nothing to read.
    pids.filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
    })
    .collect()
}
