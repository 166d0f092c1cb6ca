//! The endpoint for Prometheus: `GET /metrics` in OpenMetrics' text form, off unless it is configured.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    container::{self, Container},
    node::Node,
    sandbox,
    streaming::Streaming,
    telemetry::METRICS,
};

/// For a request to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// At once; more wait.
const MAX_CONNECTIONS: usize = 16;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type ByState = Family<[(&'static str, &'static str); 1], Gauge>;
type Real = Gauge<f64, AtomicU64>;

/// What is a state: read at every scrape.
#[derive(Debug, Default)]
struct States {
    sandboxes: ByState,
    containers: ByState,
    images: Gauge,
    image_bytes: Gauge,
    owed: Gauge,
    trash: Gauge,
    pending: Gauge,
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    virtual_memory: Gauge,
    threads: Gauge,
    descriptors: Gauge,
    max_descriptors: Real,
    started: Real,
}

/// Answers scrapes.
struct Exporter {
    node: Arc<Node>,
    streaming: Arc<Streaming>,
    registry: Registry,
    states: States,
}

/// Listens, and serves until the process ends.
///
/// # Errors
/// The address is in use, or not one of this machine.
pub(crate) async fn start(address: SocketAddr, node: Arc<Node>, streaming: Arc<Streaming>) -> anyhow::Result<()> {
    let during = || format!("metrics.listen {address}");
    let listener = TcpListener::bind(address).await.with_context(during)?;
    let address = listener.local_addr().with_context(during)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "metrics are there for everyone who reaches this address");
    }
    tracing::info!(%address, "serving metrics");
    let states = States::default();
    let exporter = Arc::new(Exporter { registry: registry(&states), states, node, streaming });
    tokio::spawn(exporter.accept(listener));
    Ok(())
}

fn registry(states: &States) -> Registry {
    let mut registry = Registry::default();
    METRICS.register(&mut registry);
    let berth = registry.sub_registry_with_prefix("berth");
    berth.register("build", "Which berthd this is", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    berth.register("sandboxes", "Pod sandboxes", states.sandboxes.clone());
    berth.register("containers", "Containers", states.containers.clone());
    berth.register("images", "Images", states.images.clone());
    berth.register("image_disk_bytes", "Bytes on disk of all images", states.image_bytes.clone());
    berth.register("network_detachments_owed", "Pods whose network is still to be detached", states.owed.clone());
    berth.register("trash_entries", "Directories that wait for their deletion", states.trash.clone());
    berth.register("streaming_urls_pending", "Streaming URLs that nobody has opened yet", states.pending.clone());
    // The names that all of Prometheus' clients have.
    let process = registry.sub_registry_with_prefix("process");
    process.register("cpu_seconds", "CPU time", states.cpu.clone());
    process.register("resident_memory_bytes", "Resident memory", states.resident.clone());
    process.register("virtual_memory_bytes", "Virtual memory", states.virtual_memory.clone());
    process.register("threads", "Threads", states.threads.clone());
    process.register("open_fds", "Open file descriptors", states.descriptors.clone());
    process.register("max_fds", "File descriptors at most", states.max_descriptors.clone());
    process.register("start_time_seconds", "When the daemon started, since the epoch", states.started.clone());
    registry
}

impl Exporter {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("accept a scrape: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let exporter = self.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(|request| {
                    let answer = exporter.answer(&request);
                    async { Ok::<_, Infallible>(answer) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .max_buf_size(64 << 10)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = serving.await {
                    tracing::debug!("a scrape: {error}");
                }
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let plain = |status, text: &str| {
            let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
            *response.status_mut() = status;
            response
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {}
            (_, "/metrics") => return plain(StatusCode::METHOD_NOT_ALLOWED, "GET"),
            _ => return plain(StatusCode::NOT_FOUND, "/metrics is here"),
        }
        self.look();
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => {
                let mut response = Response::new(Full::new(Bytes::from(text)));
                let kind = http::HeaderValue::from_static(OPENMETRICS);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Reads the states.
    fn look(&self) {
        let (node, states) = (&self.node, &self.states);
        count(
            &states.sandboxes,
            &["ready", "notready"],
            node.sandboxes.all().iter().map(|sandbox| sandbox_state(sandbox)),
        );
        let containers = node.containers.all();
        count(
            &states.containers,
            &["created", "running", "exited"],
            containers.iter().map(|container| container_state(container)),
        );
        let images = &node.machine.images;
        states.images.set(images.all().len() as i64);
        states.image_bytes.set(images.usage().bytes as i64);
        states.owed.set(node.machine.networks.owed_detachments() as i64);
        states.trash.set(fs::read_dir(node.machine.layout.trash()).map_or(0, Iterator::count) as i64);
        states.pending.set(self.streaming.pending_urls() as i64);
        self.look_at_process();
    }

    fn look_at_process(&self) {
        let states = &self.states;
        let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // proc_pid_stat(5), from the third field on: the second may have anything in it.
        let fields: Vec<u64> = text
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let cpu = (field(14) + field(15)) as f64 / ticks;
        states.cpu.inc_by((cpu - states.cpu.get()).max(0.0));
        states.threads.set(field(20) as i64);
        states.virtual_memory.set(field(23) as i64);
        states.resident.set((field(24) * rustix::param::page_size() as u64) as i64);
        states.descriptors.set(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as i64);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        states.max_descriptors.set(limit.map_or(f64::INFINITY, |limit| limit as f64));
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
        states.started.set(boot.unwrap_or(0.0) + field(22) as f64 / ticks);
    }
}

/// States that nothing is in are 0, and not absent.
fn count(family: &ByState, states: &[&'static str], all: impl Iterator<Item = &'static str>) {
    let all: Vec<_> = all.collect();
    for state in states {
        let number = all.iter().filter(|one| *one == state).count();
        family.get_or_create(&[("state", *state)]).set(number as i64);
    }
}

fn sandbox_state(sandbox: &sandbox::Sandbox) -> &'static str {
    match sandbox.state() {
        sandbox::State::Ready => "ready",
        sandbox::State::NotReady => "notready",
    }
}

fn container_state(container: &Container) -> &'static str {
    match container.state() {
        container::State::Created => "created",
        container::State::Running { .. } => "running",
        container::State::Exited { .. } => "exited",
    }
}
