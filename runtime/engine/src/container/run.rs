//! What a run is made of: the sandbox and the container that a record stands for.

mod devices;
mod mounts;
mod namespaces;
mod resources;
mod security;

use std::path::PathBuf;

use berth_base::{config::Driver, layout::Layout};
use berth_node::{
    container::{Config, parse_signal},
    host::Host,
    sandbox::{self, Origin},
};
use berth_shim::spec::{LogRotation, Window};
use http::StatusCode;

pub(crate) use self::{
    devices::check_drivers,
    mounts::{of as mounts, prepare},
    namespaces::check_joins,
    resources::resources,
};

use super::{
    base_layer, logging,
    record::{Directory, LOG, Record},
};
use crate::{
    api::host_config::{HostConfig, LogConfig},
    http::error::{Failure, Result},
};

/// The sandbox of a run.
pub(crate) fn sandbox(host: &Host, record: &Record) -> sandbox::Config {
    let asked = &record.host_config;
    let mut sandbox = sandbox::Config {
        origin: Origin::Engine,
        name: record.name.clone(),
        namespace: "docker".to_owned(),
        uid: record.id.clone(),
        hostname: match asked.uts_mode.as_str() {
            "host" => String::new(),
            _ => record.config.hostname.clone(),
        },
        log_directory: Directory::of(&host.layout.root, &record.id).path().to_owned(),
        cgroup_parent: cgroup_parent(asked, host.cgroups.driver),
        sysctls: asked.sysctls.clone().unwrap_or_default(),
        namespaces: namespaces::modes(asked),
        privileged: asked.privileged,
        runtime_handler: handler(&asked.runtime).to_owned(),
        ..sandbox::Config::default()
    };
    namespaces::share_memory(asked, &mut sandbox);
    sandbox
}

fn cgroup_parent(host: &HostConfig, driver: Driver) -> String {
    match (host.cgroup_parent.as_str(), driver) {
        ("", Driver::Cgroupfs) => "docker".to_owned(),
        ("", Driver::Systemd) => "system.slice".to_owned(),
        (parent, _) => parent.to_owned(),
    }
}

/// The node's name of a runtime. containerd's own for the default one is none of it.
pub(crate) fn handler(runtime: &str) -> &str {
    match runtime {
        "io.containerd.runc.v2" => "",
        runtime => runtime,
    }
}

/// The container of a run.
///
/// # Errors
/// As `check`.
pub(crate) fn container(layout: &Layout, record: &Record, is_awaited: bool) -> Result<Config> {
    let host = &record.host_config;
    let config = &record.config;
    let mut command = vec![record.path.clone()];
    command.extend(record.args.iter().cloned());
    let (set, unset): (Vec<&String>, Vec<&String>) =
        config.env.iter().flatten().partition(|entry| entry.contains('='));
    let env = set.into_iter().filter_map(|entry| {
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
        unset_env: unset.into_iter().cloned().collect(),
        mounts: mounts::of(layout, record)?,
        devices: devices::of(host)?,
        cdi_devices: devices::cdi(host)?,
        device_rules: devices::rules(host)?,
        annotations: host.annotations.clone().unwrap_or_default(),
        stop_signal: stop_signal(record),
        log_path: log_path(host),
        log_rotation: log_rotation(&host.log_config)?,
        stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        window: window(host.console_size),
        tmpfs: mounts::in_memory(record),
        ulimits: resources::ulimits(host),
        init: host.init == Some(true) && namespaces::owns_processes(host),
        resources: resources(host)?,
        security: security::of(record, namespaces::modes(host))?,
        writable_layer: Some(directory.path().to_owned()),
        base_layer: Some(base_layer::path(&layout.root)),
        has_volumes: true,
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

/// When the log goes on in a new file.
fn log_rotation(log: &LogConfig) -> Result<Option<LogRotation>> {
    logging::rotation(log).map_err(|why| {
        let during = "failed to create task for container: failed to initialize logging driver";
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{during}: {why}"))
    })
}

/// The size of a terminal of so many rows and columns. Without one, the client tells it later.
fn window([rows, columns]: [u32; 2]) -> Option<Window> {
    let short = |length| u16::try_from(length).unwrap_or(u16::MAX);
    let window = Window { rows: short(rows), columns: short(columns) };
    Some(window).filter(|window| *window != Window::default())
}

/// The signal of a stop; the node's default if none is named.
pub(crate) fn stop_signal(record: &Record) -> Option<i32> {
    let signal = record.config.stop_signal.as_deref()?;
    parse_signal(&signal.to_ascii_uppercase())
}
