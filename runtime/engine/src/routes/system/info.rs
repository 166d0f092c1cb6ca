//! `GET /info`.

use std::{collections::BTreeMap, env, fs, path::Path};

use berth_base::{blocking::spawn_blocking, clock::now, config::Driver};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Call, version::kernel};
use crate::{
    api::SERVER_VERSION,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::Result,
        version::Version,
    },
    sysinfo::SysInfo,
    time::rfc3339_nano,
};

/// The answer, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(rename = "ID")]
    id: String,
    containers: usize,
    containers_running: usize,
    containers_paused: usize,
    containers_stopped: usize,
    images: usize,
    driver: &'static str,
    driver_status: [[String; 2]; 5],
    plugins: Value,
    memory_limit: bool,
    swap_limit: bool,
    #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "std::ops::Not::not")]
    kernel_memory_tcp: bool,
    cpu_cfs_period: bool,
    cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    cpu_set: bool,
    pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    ipv4_forwarding: bool,
    debug: bool,
    #[serde(rename = "NFd")]
    descriptors: usize,
    oom_kill_disable: bool,
    #[serde(rename = "NGoroutines")]
    tasks: usize,
    system_time: String,
    logging_driver: &'static str,
    cgroup_driver: &'static str,
    cgroup_version: &'static str,
    #[serde(rename = "NEventsListener")]
    listeners: usize,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSVersion")]
    os_version: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: &'static str,
    index_server_address: &'static str,
    registry_config: Value,
    #[serde(rename = "NCPU")]
    cpus: usize,
    mem_total: u64,
    generic_resources: Option<Value>,
    docker_root_dir: String,
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    name: String,
    labels: [String; 0],
    experimental_build: bool,
    server_version: &'static str,
    runtimes: BTreeMap<String, Value>,
    default_runtime: &'static str,
    swarm: Value,
    live_restore_enabled: bool,
    isolation: &'static str,
    init_binary: &'static str,
    containerd_commit: Value,
    runc_commit: Value,
    init_commit: Value,
    security_options: Vec<String>,
    #[serde(rename = "CDISpecDirs")]
    cdi_spec_dirs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firewall_backend: Option<Value>,
    warnings: Option<Vec<String>>,
    #[serde(flatten)]
    of_old_clients: BTreeMap<&'static str, bool>,
}

/// From this version on the firewall is named.
const NAMES_FIREWALL: Version = Version(49);
/// Below these versions there is what later ones have left out.
const HAS_KERNEL_MEMORY: Version = Version(42);
const HAS_BRIDGE_FILTERS: Version = Version(50);
const HAS_NONDISTRIBUTABLE: Version = Version(49);

pub(in crate::routes) async fn info(call: &Call) -> Result<Answer> {
    let engine = call.engine.clone();
    let version = call.version;
    let info = spawn_blocking(move || read(&engine, version)).await;
    let info = info.map_err(|error| anyhow::Error::new(error).context("read the machine"))?;
    Ok(body::ok(&info))
}

fn read(engine: &Engine, version: Version) -> Info {
    let machine = SysInfo::read();
    let host = &engine.node.host;
    let states: Vec<_> =
        engine.containers.all().iter().map(|container| container.state()).collect();
    let count =
        |wanted: fn(&str) -> bool| states.iter().filter(|state| wanted(state.status())).count();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let proxy = |name: &str| {
        env::var(name).or_else(|_| env::var(name.to_ascii_lowercase())).unwrap_or_default()
    };
    let (running, paused) = (count(is_running), count(|status| status == "paused"));
    Info {
        id: machine_id(),
        containers: states.len(),
        containers_running: running,
        containers_paused: paused,
        containers_stopped: states.len() - running - paused,
        images: host.images.all().len(),
        driver: "overlay2",
        driver_status: driver_status(&host.layout.root),
        plugins: json!({
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": null,
            "Log": ["json-file", "local", "none"],
        }),
        memory_limit: machine.memory_limit,
        swap_limit: machine.swap_limit,
        kernel_memory_tcp: machine.kernel_memory_tcp,
        cpu_cfs_period: machine.cpu_cfs,
        cpu_cfs_quota: machine.cpu_cfs,
        cpu_shares: machine.cpu_shares,
        cpu_set: machine.cpuset,
        pids_limit: machine.pids_limit,
        ipv4_forwarding: machine.ipv4_forwarding,
        debug: tracing::enabled!(tracing::Level::DEBUG),
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        oom_kill_disable: machine.oom_kill_disable,
        tasks: tasks(),
        system_time: rfc3339_nano(now()),
        logging_driver: "json-file",
        cgroup_driver: match host.cgroups.driver {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        },
        cgroup_version: if machine.is_v2 { "2" } else { "1" },
        listeners: engine.events.listeners(),
        kernel_version: kernel(),
        operating_system: field(&release, "PRETTY_NAME").unwrap_or("Linux").to_owned(),
        os_version: field(&release, "VERSION_ID").unwrap_or_default().to_owned(),
        os_type: "linux",
        architecture: std::env::consts::ARCH,
        index_server_address: "https://index.docker.io/v1/",
        registry_config: registry_config(version),
        cpus: machine.cpus,
        mem_total: machine.memory,
        generic_resources: None,
        docker_root_dir: host.layout.root.to_string_lossy().into_owned(),
        http_proxy: proxy("HTTP_PROXY"),
        https_proxy: proxy("HTTPS_PROXY"),
        no_proxy: proxy("NO_PROXY"),
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        labels: [],
        experimental_build: false,
        server_version: SERVER_VERSION,
        runtimes: runtimes(engine),
        default_runtime: "runc",
        swarm: json!({
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        }),
        live_restore_enabled: true,
        isolation: "",
        init_binary: "docker-init",
        containerd_commit: json!({ "ID": "" }),
        runc_commit: json!({ "ID": "" }),
        init_commit: json!({ "ID": "" }),
        security_options: security_options(&machine),
        cdi_spec_dirs: host
            .cdi_dirs
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect(),
        firewall_backend: (version >= NAMES_FIREWALL).then(|| json!({ "Driver": "nftables" })),
        warnings: warnings(&machine),
        of_old_clients: of_old_clients(version),
    }
}

fn registry_config(version: Version) -> Value {
    let mut config = json!({
        "IndexConfigs": {
            "docker.io": { "Mirrors": [], "Name": "docker.io", "Official": true, "Secure": true },
        },
        "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
        "Mirrors": null,
    });
    if version < HAS_NONDISTRIBUTABLE {
        config["AllowNondistributableArtifactsCIDRs"] = Value::Null;
        config["AllowNondistributableArtifactsHostnames"] = Value::Null;
    }
    config
}

fn of_old_clients(version: Version) -> BTreeMap<&'static str, bool> {
    let mut fields = BTreeMap::new();
    if version < HAS_BRIDGE_FILTERS {
        fields.extend([("BridgeNfIptables", false), ("BridgeNfIp6tables", false)]);
    }
    if version < HAS_KERNEL_MEMORY {
        fields.insert("KernelMemory", true);
    }
    fields
}

fn is_running(status: &str) -> bool {
    ["running", "restarting"].contains(&status)
}

/// A name of this machine that stays, in the form of a UUID.
fn machine_id() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = id.trim();
    if id.len() != 32 || !id.is_ascii() {
        return id.to_owned();
    }
    [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-")
}

fn driver_status(root: &Path) -> [[String; 2]; 5] {
    [
        ["Backing Filesystem", filesystem(root)],
        ["Supports d_type", "true"],
        ["Using metacopy", "false"],
        ["Native Overlay Diff", "true"],
        ["userxattr", "false"],
    ]
    .map(|pair| pair.map(str::to_owned))
}

/// By the magic number of its filesystem, in dockerd's words (statfs(2)).
fn filesystem(root: &Path) -> &'static str {
    match rustix::fs::statfs(root).map(|found| found.f_type as u64 & 0xffff_ffff) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x2fc1_2fc1) => "zfs",
        Ok(0xf2f5_2010) => "f2fs",
        Ok(0x794c_7630) => "overlayfs",
        _ => "<unknown>",
    }
}

/// The daemon's threads, which are what it has of Go's routines.
fn tasks() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// A value of os-release(5).
fn field<'a>(release: &'a str, name: &str) -> Option<&'a str> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']))
}

fn runtimes(engine: &Engine) -> BTreeMap<String, Value> {
    let own =
        ["io.containerd.runc.v2", "runc"].map(|name| (name.to_owned(), json!({ "path": "runc" })));
    let mut runtimes = BTreeMap::from(own);
    for (name, is_own) in engine.node.host.handlers.all().filter(|(name, _)| !name.is_empty()) {
        if !is_own {
            runtimes.insert(name.to_owned(), json!({ "path": name }));
        }
    }
    runtimes
}

fn security_options(machine: &SysInfo) -> Vec<String> {
    let is_there = |path: &str| Path::new(path).exists();
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let mut options = Vec::new();
    if apparmor.is_ok_and(|text| text.starts_with('Y')) {
        options.push("name=apparmor".to_owned());
    }
    options.push("name=seccomp,profile=builtin".to_owned());
    if is_there("/sys/fs/selinux/enforce") {
        options.push("name=selinux".to_owned());
    }
    if machine.is_v2 {
        options.push("name=cgroupns".to_owned());
    }
    options
}

/// What the CLI shows as `WARNING: …`.
fn warnings(machine: &SysInfo) -> Option<Vec<String>> {
    let mut warnings = Vec::new();
    for (is_there, text) in [
        (machine.memory_limit, "WARNING: No memory limit support"),
        (machine.swap_limit, "WARNING: No swap limit support"),
        (machine.cpu_cfs, "WARNING: No cpu cfs quota support"),
        (machine.cpu_shares, "WARNING: No cpu shares support"),
        (machine.cpuset, "WARNING: No cpuset support"),
        (machine.ipv4_forwarding, "WARNING: IPv4 forwarding is disabled"),
    ] {
        if !is_there {
            warnings.push(text.to_owned());
        }
    }
    (!warnings.is_empty()).then_some(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_os_release_may_be_quoted() {
        let release = "NAME=Debian\nPRETTY_NAME=\"Debian 12\"\nVERSION_ID='12'\n";
        assert_eq!(field(release, "PRETTY_NAME"), Some("Debian 12"));
        assert_eq!(
            (field(release, "VERSION_ID"), field(release, "NAME")),
            (Some("12"), Some("Debian"))
        );
        assert_eq!(field(release, "ID"), None);
    }
}
