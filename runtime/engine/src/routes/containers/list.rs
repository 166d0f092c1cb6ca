//! `GET /containers/json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use berth_base::{blocking::spawn_blocking, clock::since};
use http::StatusCode;
use serde::Serialize;

use super::{
    Call, mount,
    network_settings::{Endpoint, endpoints, listed_endpoints, listed_ports},
    slashed,
};
use crate::{
    container::{
        links,
        object::Container,
        record::Record,
        size,
        state::{Phase, State},
    },
    engine::Engine,
    filters::{Expressions, Filters},
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    status_text::{self, status_text},
};

const KEYS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: [&str; 7] =
    ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
const HEALTH: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];

/// One container of the list, with its fields in dockerd's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::routes) struct Entry {
    id: String,
    names: Vec<String>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: i64,
    ports: Vec<crate::ports::PortSummary>,
    #[serde(skip_serializing_if = "is_zero")]
    size_rw: u64,
    #[serde(skip_serializing_if = "is_zero")]
    size_root_fs: u64,
    labels: BTreeMap<String, String>,
    state: &'static str,
    status: String,
    host_config: EntryHostConfig,
    network_settings: EntryNetworks,
    mounts: Vec<mount::Shown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EntryHostConfig {
    network_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EntryNetworks {
    networks: BTreeMap<String, Endpoint>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(size: &u64) -> bool {
    *size == 0
}

pub(in crate::routes) async fn list(call: &Call) -> Result<Answer> {
    let engine = &call.engine;
    let filters = Filters::parse(call.query.get("filters"))?;
    let limit = call.query.number::<i64>("limit")?.unwrap_or(0);
    let wanted = Wanted::new(engine, &filters, limit > 0 || call.query.flag("all"))?;
    let count = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let all = engine.containers.all();
    let mut aliases = aliases(engine, &all);
    let mut entries = Vec::new();
    let mut uppers = Vec::new();
    for container in all.iter().filter(|container| wanted.takes(engine, container)).take(count) {
        let mut entry = entry(engine, container);
        entry.names.extend(aliases.remove(&container.id).unwrap_or_default());
        entries.push(entry);
        uppers.push(container.directory.path().join("upper"));
    }
    if call.query.flag("size") {
        measure(engine, &mut entries, uppers).await;
    }
    Ok(body::ok(&entries))
}

/// All containers as a list shows them, with their sizes.
pub(in crate::routes) async fn all_with_sizes(engine: &Engine) -> Vec<Entry> {
    let all = engine.containers.all();
    let mut entries: Vec<Entry> = all.iter().map(|container| entry(engine, container)).collect();
    let uppers = all.iter().map(|container| container.directory.path().join("upper")).collect();
    measure(engine, &mut entries, uppers).await;
    entries
}

async fn measure(engine: &Engine, entries: &mut [Entry], uppers: Vec<PathBuf>) {
    let sizes = spawn_blocking(move || uppers.iter().map(|upper| size::written(upper)).collect());
    let sizes: Vec<u64> = sizes.await.unwrap_or_default();
    for (entry, written) in entries.iter_mut().zip(sizes) {
        let image = engine.node.host.images.find(&entry.image_id).ok().flatten();
        entry.size_rw = written;
        entry.size_root_fs = written + image.map_or(0, |image| image.size);
    }
}

/// The names that links give to containers, `/parent/alias`, by id.
fn aliases(engine: &Engine, all: &[Arc<Container>]) -> BTreeMap<String, Vec<String>> {
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for parent in all {
        let record = parent.record();
        let links = record.host_config.links.iter().flatten().filter_map(|link| {
            let (name, alias) = links::parse(link).ok()?;
            Some((engine.containers.find(name).ok()?.id.clone(), alias))
        });
        for (id, alias) in links {
            aliases.entry(id).or_default().push(format!("/{}/{alias}", record.name));
        }
    }
    aliases
}

fn entry(engine: &Engine, container: &Arc<Container>) -> Entry {
    let record = container.record();
    let state = container.state();
    Entry {
        id: container.id.clone(),
        names: vec![slashed(container)],
        image: image(engine, &record),
        image_id: record.image_id.clone(),
        command: command(&record),
        created: record.created_at / 1_000_000_000,
        ports: listed_ports(engine, container),
        size_rw: 0,
        size_root_fs: 0,
        labels: record.config.labels.clone().unwrap_or_default(),
        state: state.status(),
        status: status(&state),
        host_config: EntryHostConfig {
            network_mode: record.host_config.network_mode.clone(),
            annotations: record.host_config.annotations.clone(),
        },
        network_settings: EntryNetworks { networks: listed_endpoints(engine, container) },
        mounts: mount::of(&record),
    }
}

/// The name that was asked for, for as long as it is that of the container's image.
fn image(engine: &Engine, record: &Record) -> String {
    let found = engine.node.host.images.find(&record.config.image).ok().flatten();
    match found.is_some_and(|image| image.id.to_string() == record.image_id) {
        true => record.config.image.clone(),
        false => record.image_id.clone(),
    }
}

fn command(record: &Record) -> String {
    let mut command = record.path.clone();
    for argument in &record.args {
        match argument.contains(' ') {
            true => command += &format!(" '{argument}'"),
            false => command += &format!(" {argument}"),
        }
    }
    command
}

fn status(state: &State) -> String {
    let (started, ended) = (since(state.last.started_at), since(state.last.finished_at));
    let exit_code = state.last.exit_code;
    status_text(match state.phase {
        Phase::Created => status_text::State::Created,
        Phase::Running { .. } => {
            let health = state.last.health.as_ref().map(|health| health.status);
            status_text::State::Running { since: started, health }
        }
        Phase::Paused { .. } => status_text::State::Paused { since: started },
        Phase::Restarting => status_text::State::Restarting { exit_code, ended },
        Phase::Exited => status_text::State::Exited { exit_code, ended },
        Phase::Removing | Phase::Removed => status_text::State::Removing,
    })
}

fn health(state: &State) -> &'static str {
    state.last.health.as_ref().map_or("none", |health| health.status.as_str())
}

/// What a list takes.
struct Wanted<'a> {
    filters: &'a Filters,
    /// Whether those that do not run are taken as well.
    all: bool,
    names: Expressions<'a>,
    ids: Expressions<'a>,
    exit_codes: Vec<i32>,
    before: Option<i64>,
    since: Option<i64>,
    /// The ids of images.
    ancestors: Option<BTreeSet<String>>,
    published: Vec<String>,
    exposed: Vec<String>,
    is_task: bool,
}

impl<'a> Wanted<'a> {
    fn new(engine: &Engine, filters: &'a Filters, all: bool) -> Result<Self> {
        filters.accept(&KEYS)?;
        one_of(filters, "status", "state", &STATES)?;
        one_of(filters, "health", "health", &HEALTH)?;
        let exit_codes = filters.values("exited").map(|code| {
            code.parse().map_err(|_| {
                Failure::bad_request(format!(
                    "invalid filter 'exited={code}': strconv.Atoi: parsing \"{code}\": invalid \
                     syntax"
                ))
            })
        });
        let exit_codes = exit_codes.collect::<Result<_>>()?;
        let created = |key: &str| {
            let found = filters.values(key).map(|name| engine.containers.find(name));
            found.last().transpose().map(|found| found.map(|found| found.record().created_at))
        };
        let ancestors = filters.contains("ancestor").then(|| {
            let found = filters
                .values("ancestor")
                .filter_map(|name| engine.node.host.images.find(name).ok().flatten());
            found.map(|image| image.id.to_string()).collect()
        });
        let (before, since) = (created("before")?, created("since")?);
        Ok(Self {
            all: all || filters.contains("status") || before.is_some() || since.is_some(),
            names: filters.expressions("name"),
            ids: filters.expressions("id"),
            exit_codes,
            before,
            since,
            ancestors,
            published: ports(filters, "publish")?,
            exposed: ports(filters, "expose")?,
            is_task: filters.flag("is-task")?.unwrap_or(false),
            filters,
        })
    }

    fn takes(&self, engine: &Engine, container: &Arc<Container>) -> bool {
        let record = container.record();
        let state = container.state();
        let labels = record.config.labels.clone().unwrap_or_default();
        (self.all || state.is_active())
            && !self.is_task
            && self.takes_name(&record.name)
            && self.ids.matches(&container.id)
            && self.filters.matches_labels("label", &labels)
            && self.before.is_none_or(|before| record.created_at < before)
            && self.since.is_none_or(|since| record.created_at > since)
            && self.takes_exit(&state)
            && self.filters.matches_exactly("status", state.status())
            && self.filters.matches_exactly("health", health(&state))
            && self.ancestors.as_ref().is_none_or(|ids| ids.contains(&record.image_id))
            && self.takes_mounts(&record)
            && self.takes_networks(engine, container)
            && self.takes_ports(engine, container)
    }

    /// With the slash in front, and without it: `^/web$` and `^web$` are both in use.
    fn takes_name(&self, name: &str) -> bool {
        self.names.matches(&format!("/{name}")) || self.names.matches(name)
    }

    fn takes_exit(&self, state: &State) -> bool {
        self.exit_codes.is_empty()
            || (state.phase == Phase::Exited && self.exit_codes.contains(&state.last.exit_code))
    }

    /// By the name or the destination of a mount.
    fn takes_mounts(&self, record: &Record) -> bool {
        !self.filters.contains("volume")
            || record.mounts.iter().any(|mount| {
                self.filters.values("volume").any(|wanted| {
                    wanted == mount.name || wanted == mount.destination || wanted == mount.source
                })
            })
    }

    /// By the name or the id of a network.
    fn takes_networks(&self, engine: &Engine, container: &Container) -> bool {
        !self.filters.contains("network")
            || endpoints(engine, container).iter().any(|(name, endpoint)| {
                self.filters.values("network").any(|wanted| {
                    wanted == name
                        || (!wanted.is_empty() && endpoint.network_id.starts_with(wanted))
                })
            })
    }

    /// By ports of the host that are published, or by ports of the container, as the list shows
    /// them: those of one that does not run are none.
    fn takes_ports(&self, engine: &Engine, container: &Container) -> bool {
        if self.published.is_empty() && self.exposed.is_empty() {
            return true;
        }
        listed_ports(engine, container).iter().any(|listed| {
            let has = |port: u16, wanted: &[String]| {
                wanted.contains(&format!("{port}/{}", listed.protocol))
            };
            listed.public_port.is_some_and(|port| has(port, &self.published))
                || has(listed.private_port, &self.exposed)
        })
    }
}

fn one_of(filters: &Filters, key: &str, what: &str, known: &[&str]) -> Result<()> {
    match filters.values(key).find(|value| !known.contains(value)) {
        None => Ok(()),
        Some(value) => Err(Failure::bad_request(format!(
            "invalid filter '{key}={value}': invalid value for {what} ({value}): must be one of {}",
            known.join(", ")
        ))),
    }
}

/// The ports of a filter, `80`, `80/udp` or `8000-8010/tcp`, one by one.
fn ports(filters: &Filters, key: &str) -> Result<Vec<String>> {
    let refused = |text: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut ports = Vec::new();
    for value in filters.values(key) {
        if value.contains(':') {
            let text = format!("filter for '{key}' should not contain ':': {value}");
            return Err(refused(text));
        }
        let (range, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            text.parse::<u16>().map_err(|_| {
                refused(format!(
                    "error while looking up for {key} {value}: strconv.ParseUint: parsing \
                     \"{text}\": invalid syntax"
                ))
            })
        };
        let (first, last) = (number(first)?, number(last)?);
        ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    }
    Ok(ports)
}
