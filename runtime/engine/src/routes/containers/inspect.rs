//! `GET /containers/{name}/json`.

use std::{collections::BTreeMap, path::Path};

use berth_base::{blocking::spawn_blocking, id::SandboxId, layout};
use serde::Serialize;

use super::{
    Call, mount,
    network_settings::{NetworkSettings, network_settings},
    slashed,
};
use crate::{
    api::{create::ContainerConfig, host_config::HostConfig},
    container::{
        links,
        object::Container,
        record::Record,
        size,
        state::{Phase, State},
    },
    engine::Engine,
    health::Health,
    http::{
        body::{self, Answer},
        error::Result,
    },
    time::{NEVER, rfc3339_nano},
};

/// The answer, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected<'a> {
    id: &'a str,
    created: String,
    path: &'a str,
    args: &'a [String],
    state: InspectedState<'a>,
    image: &'a str,
    resolv_conf_path: String,
    hostname_path: String,
    hosts_path: String,
    log_path: String,
    name: String,
    restart_count: u32,
    driver: &'static str,
    platform: &'static str,
    mount_label: &'static str,
    process_label: &'static str,
    app_armor_profile: &'a str,
    #[serde(rename = "ExecIDs")]
    exec_ids: Option<Vec<String>>,
    host_config: HostConfig,
    graph_driver: GraphDriver,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    mounts: Vec<mount::Shown>,
    config: ContainerConfig,
    network_settings: NetworkSettings,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState<'a> {
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: u32,
    exit_code: i32,
    error: String,
    started_at: String,
    finished_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'a Health>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    data: BTreeMap<&'static str, String>,
    name: &'static str,
}

pub(in crate::routes) async fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let engine = &call.engine;
    let container = engine.containers.find(name)?;
    let record = container.record();
    let state = container.state();
    let written = match call.query.flag("size") {
        true => {
            let upper = container.directory.path().join("upper");
            spawn_blocking(move || size::written(&upper)).await.ok()
        }
        false => None,
    };
    let image = engine.node.host.images.find(&record.image_id).ok().flatten();
    let of_image = image.map_or(0, |image| image.size);
    let file = |name| run_file(engine, &container, &state, name);
    let mut host_config = record.host_config.clone();
    host_config.links = links::shown(&record);
    let mut config = record.config.clone();
    // As dockerd, also that of the endpoint.
    let own = record.networking.endpoints_config.get(&host_config.network_mode).cloned().flatten();
    let of_endpoint = own.and_then(|endpoint| endpoint.mac_address);
    config.mac_address = config.mac_address.filter(|mac| !mac.is_empty()).or(of_endpoint);
    let answer = Inspected {
        id: &container.id,
        created: rfc3339_nano(record.created_at),
        path: &record.path,
        args: &record.args,
        state: inspected_state(&state),
        image: &record.image_id,
        resolv_conf_path: file(layout::sandbox::RESOLV_CONF),
        hostname_path: file(layout::sandbox::HOSTNAME),
        hosts_path: file(layout::sandbox::HOSTS),
        log_path: match state.last.started_at {
            0 => String::new(),
            _ => text(&container.directory.log()),
        },
        name: slashed(&container),
        restart_count: state.last.restarts.count,
        driver: "overlay2",
        platform: "linux",
        mount_label: "",
        process_label: "",
        app_armor_profile: app_armor_profile(&record.host_config),
        exec_ids: Some(engine.execs.of(&container)).filter(|ids| !ids.is_empty()),
        host_config,
        graph_driver: graph_driver(engine, &container, &record, &state),
        size_rw: written,
        size_root_fs: written.map(|written| written + of_image),
        mounts: mount::of(&record),
        config,
        network_settings: network_settings(engine, &container),
    };
    Ok(body::ok(&answer))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn inspected_state(state: &State) -> InspectedState<'_> {
    let time = |nanos: i64| if nanos == 0 { NEVER.to_owned() } else { rfc3339_nano(nanos) };
    InspectedState {
        status: state.status(),
        running: state.is_active(),
        paused: state.is_paused(),
        restarting: state.phase == Phase::Restarting,
        oom_killed: state.last.oom,
        dead: false,
        pid: state.pid().unwrap_or(0),
        exit_code: state.last.exit_code,
        error: state.last.error.clone(),
        started_at: time(state.last.started_at),
        finished_at: time(state.last.finished_at),
        health: state.last.health.as_ref(),
    }
}

/// A file that containers see at its place in /etc. They are made by a start.
fn run_file(engine: &Engine, container: &Container, state: &State, name: &str) -> String {
    if state.last.started_at == 0 {
        return String::new();
    }
    let id = SandboxId::from(container.id.clone());
    text(&engine.node.host.layout.sandbox(&id).join(name))
}

/// The profile that was asked for; the default one goes without saying.
fn app_armor_profile(host: &HostConfig) -> &str {
    let options = host.security_opt.iter().flatten();
    options
        .filter_map(|option| {
            option.strip_prefix("apparmor").and_then(|o| o.strip_prefix(['=', ':']))
        })
        .next_back()
        .unwrap_or_default()
}

/// Where the layers are. The whole is mounted where only the container sees it: /proc shows it for
/// as long as it runs.
fn graph_driver(
    engine: &Engine,
    container: &Container,
    record: &Record,
    state: &State,
) -> GraphDriver {
    let layers = engine.node.host.layout.layers();
    let lower: Vec<String> =
        record.layers.iter().map(|key| text(&layers.join(key).join(berth_image::FILES))).collect();
    let own = container.directory.path();
    let merged = match state.pid() {
        Some(pid) => format!("/proc/{pid}/root"),
        None => text(&own.join("merged")),
    };
    let data = BTreeMap::from([
        ("ID", container.id.clone()),
        ("LowerDir", lower.join(":")),
        ("MergedDir", merged),
        ("UpperDir", text(&own.join("upper"))),
        ("WorkDir", text(&own.join("work"))),
    ]);
    GraphDriver { data, name: "overlay2" }
}
