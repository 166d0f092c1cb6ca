//! What a run is made of: the sandbox and the container that a record stands for. Pure functions.

use std::path::{Path, PathBuf};

use berth_base::{error::Error, layout::Layout};
use berth_node::{
    cgroup::Resources,
    container::{Config, Device, Mount, MountSource, Seccomp, Security},
    sandbox::{self, NamespaceMode, NamespaceModes, Origin},
};
use berth_shim::spec::Propagation;

use super::record::{Directory, LOG, Record};
use crate::{
    api::host_config::HostConfig,
    http::error::{Failure, Result},
    network::plan,
};

/// The paths that a container does not see, and those that it cannot write (moby,
/// `daemon/pkg/oci/defaults.go`).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Refuses what no run could be made of.
///
/// # Errors
/// 400, in dockerd's words where it has some.
pub(crate) fn check(record: &Record) -> Result<()> {
    if record.host_config.auto_remove && !["", "no"].contains(&policy(record)) {
        return Err(Failure::bad_request(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    let driver = record.host_config.log_config.r#type.as_str();
    if !["", "json-file", "local", "none"].contains(&driver) {
        return Err(Failure::bad_request(format!(
            "logger: no log driver named '{driver}' is registered"
        )));
    }
    plan::mappings(record)?;
    mounts(&record.host_config)?;
    Ok(())
}

fn policy(record: &Record) -> &str {
    &record.host_config.restart_policy.name
}

/// The sandbox of a run.
///
/// # Errors
/// As `check`.
pub(crate) fn sandbox(layout: &Layout, record: &Record) -> Result<sandbox::Config> {
    let host = &record.host_config;
    let network = match host.network_mode.as_str() {
        "host" => NamespaceMode::Node,
        _ => NamespaceMode::Pod,
    };
    let hostname = match network {
        NamespaceMode::Node => String::new(),
        _ => record.config.hostname.clone(),
    };
    Ok(sandbox::Config {
        origin: Origin::Engine,
        name: record.name.clone(),
        namespace: "docker".to_owned(),
        uid: record.id.clone(),
        hostname,
        log_directory: Directory::of(&layout.root, &record.id).path().to_owned(),
        cgroup_parent: cgroup_parent(host),
        sysctls: host.sysctls.clone().unwrap_or_default(),
        namespaces: namespaces(host, network),
        privileged: host.privileged,
        ..sandbox::Config::default()
    })
}

fn cgroup_parent(host: &HostConfig) -> String {
    match host.cgroup_parent.as_str() {
        "" => "docker".to_owned(),
        parent => parent.to_owned(),
    }
}

fn namespaces(host: &HostConfig, network: NamespaceMode) -> NamespaceModes {
    let mode = |text: &str| match text {
        "host" => NamespaceMode::Node,
        _ => NamespaceMode::Container,
    };
    NamespaceModes {
        network,
        pid: mode(&host.pid_mode),
        ipc: match host.ipc_mode.as_str() {
            "host" => NamespaceMode::Node,
            _ => NamespaceMode::Pod,
        },
        ..NamespaceModes::default()
    }
}

/// The container of a run.
///
/// # Errors
/// As `check`.
pub(crate) fn container(layout: &Layout, record: &Record, is_awaited: bool) -> Result<Config> {
    let host = &record.host_config;
    let network = match host.network_mode.as_str() {
        "host" => NamespaceMode::Node,
        _ => NamespaceMode::Pod,
    };
    let config = &record.config;
    let mut command = vec![record.path.clone()];
    command.extend(record.args.iter().cloned());
    let env = config.env.iter().flatten().filter_map(|entry| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let directory = Directory::of(&layout.root, &record.id);
    Ok(Config {
        name: record.name.clone(),
        image: record.image_id.clone(),
        command,
        working_dir: config.working_dir.clone(),
        env: env.collect(),
        mounts: mounts(host)?,
        devices: devices(host),
        log_path: log_path(host),
        stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(host),
        security: security(record, network),
        writable_layer: Some(directory.path().to_owned()),
        awaits_attach: is_awaited,
        ..Config::default()
    })
}

/// The driver `none` keeps nothing. The others are one here: `local` and `json-file` differ in what
/// their files look like, which nobody reads but the daemon.
fn log_path(host: &HostConfig) -> PathBuf {
    match host.log_config.r#type.as_str() {
        "none" => PathBuf::new(),
        _ => PathBuf::from(LOG),
    }
}

fn security(record: &Record, network: NamespaceMode) -> Security {
    let host = &record.host_config;
    let paths = |set: &Option<Vec<String>>, default: &[&str]| match set {
        Some(paths) => paths.iter().map(PathBuf::from).collect(),
        None => default.iter().map(PathBuf::from).collect(),
    };
    let (user, group) = record.config.user.split_once(':').unwrap_or((&record.config.user, ""));
    let number = user.parse::<i64>().ok();
    Security {
        privileged: host.privileged,
        namespaces: namespaces(host, network),
        add_capabilities: host.cap_add.clone().unwrap_or_default(),
        drop_capabilities: host.cap_drop.clone().unwrap_or_default(),
        run_as_user: number,
        run_as_username: if number.is_some() { String::new() } else { user.to_owned() },
        run_as_group: group.parse().ok(),
        supplemental_groups: host
            .group_add
            .iter()
            .flatten()
            .filter_map(|id| id.parse().ok())
            .collect(),
        readonly_rootfs: host.readonly_rootfs,
        no_new_privs: has_option(host, "no-new-privileges"),
        masked_paths: paths(&host.masked_paths, &MASKED),
        readonly_paths: paths(&host.readonly_paths, &READONLY),
        seccomp: match has_option(host, "seccomp=unconfined") {
            true => Seccomp::Unconfined,
            false => Seccomp::RuntimeDefault,
        },
        ..Security::default()
    }
}

fn has_option(host: &HostConfig, wanted: &str) -> bool {
    host.security_opt.iter().flatten().any(|option| {
        option == wanted
            || option == &format!("{wanted}:true")
            || option == &format!("{wanted}=true")
            || option.replace(':', "=") == wanted
    })
}

fn resources(host: &HostConfig) -> Resources {
    const PERIOD: i64 = 100_000;
    let (cpu_period, cpu_quota) = match host.nano_cpus {
        0 => (host.cpu_period, host.cpu_quota),
        nano => (PERIOD, nano / (1_000_000_000 / PERIOD)),
    };
    Resources {
        cpu_period,
        cpu_quota,
        cpu_shares: host.cpu_shares,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        memory_limit: host.memory,
        // Twice the memory, unless something else is asked for.
        memory_swap_limit: match (host.memory, host.memory_swap) {
            (memory, 0) if memory > 0 => memory.saturating_mul(2),
            (_, swap) => swap,
        },
        oom_score_adj: host.oom_score_adj,
        ..Resources::default()
    }
}

fn devices(host: &HostConfig) -> Vec<Device> {
    let or = |text: &str, default: &str| match text {
        "" => default.to_owned(),
        text => text.to_owned(),
    };
    host.devices
        .iter()
        .flatten()
        .map(|device| Device {
            host_path: PathBuf::from(&device.path_on_host),
            container_path: or(&device.path_in_container, &device.path_on_host).into(),
            permissions: or(&device.cgroup_permissions, "rwm"),
        })
        .collect()
}

/// Binds in the short form, `SOURCE:TARGET[:OPTIONS]`.
fn mounts(host: &HostConfig) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for bind in host.binds.iter().flatten() {
        let invalid = || Failure::bad_request(format!("invalid volume specification: '{bind}'"));
        let mut parts = bind.splitn(3, ':');
        let (source, target) =
            (parts.next().unwrap_or_default(), parts.next().ok_or_else(invalid)?);
        let options: Vec<&str> = parts.next().unwrap_or_default().split(',').collect();
        if !Path::new(source).is_absolute() || !Path::new(target).is_absolute() {
            return Err(invalid());
        }
        mounts.push(Mount {
            source: MountSource::Host(PathBuf::from(source)),
            container_path: PathBuf::from(target),
            readonly: options.contains(&"ro"),
            recursive_readonly: false,
            propagation: match () {
                () if options.iter().any(|o| o.ends_with("shared")) => Propagation::Shared,
                () if options.iter().any(|o| o.ends_with("slave")) => Propagation::Slave,
                () => Propagation::Private,
            },
            selinux_relabel: options.iter().any(|option| ["z", "Z"].contains(option)),
            mapping: None,
            options: Vec::new(),
        });
    }
    Ok(mounts)
}

/// The exit code and the text of a failed start. The CLI makes 127 and 126 of these words.
pub(crate) fn start_failure(record: &Record, error: &Error) -> (i32, String) {
    match program_failure(&record.path, &error.message) {
        Some((code, why)) => {
            let create = "failed to create task for container: failed to create shim task: OCI \
                          runtime create failed: unable to start container process: error during \
                          container init";
            (code, format!("{create}: {why}"))
        }
        None => (128, error.message.clone()),
    }
}

/// What was wrong with a program that could not be executed, with its exit code, in runc's words.
/// `None` if it was something else.
pub(crate) fn program_failure(program: &str, text: &str) -> Option<(i32, String)> {
    if text.contains("No such file or directory") || text.contains("not found") {
        let what = match program.contains('/') {
            true => "no such file or directory",
            false => "executable file not found in $PATH",
        };
        return Some((127, format!("exec: \"{program}\": {what}")));
    }
    if text.contains("Permission denied") || text.contains("Is a directory") {
        return Some((126, format!("exec: \"{program}\": permission denied")));
    }
    None
}
