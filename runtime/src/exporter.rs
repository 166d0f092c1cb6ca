//! The endpoint for Prometheus: `GET /metrics` in the text format of OpenMetrics. It is off unless
//! `metrics.listen` is configured.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context;
use berth_base::{accept::Acceptor, observe::METRICS};
use berth_node::{
    Node,
    container::{self, Container},
    sandbox,
};
use berth_streaming::Streaming;
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
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// How long a connection may be idle. Prometheus keeps its connection, and scrapes once a minute or
/// more often.
const IDLE: Duration = Duration::from_secs(60);
/// How many connections there are at a time. Others wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// The size in bytes of hyper's buffer for a request's headers.
const MAX_REQUEST: usize = 64 << 10;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type ByState = Family<[(&'static str, &'static str); 1], Gauge>;
type Real = Gauge<f64, AtomicU64>;

/// Metrics that are read at every scrape. All others are counted when something happens.
#[derive(Debug, Default)]
struct States {
    sandboxes: ByState,
    containers: ByState,
    images: Gauge,
    image_bytes: Gauge,
    pending_detachments: Gauge,
    trash: Gauge,
    pending_urls: Gauge,
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    virtual_memory: Gauge,
    threads: Gauge,
    descriptors: Gauge,
    max_descriptors: Real,
    started: Real,
}

/// Serves scrapes.
struct Exporter {
    node: Arc<Node>,
    streaming: Arc<Streaming>,
    registry: Registry,
    states: States,
}

/// Listens on `address`, and serves until the process ends.
///
/// # Errors
/// The address is in use, or is not an address of this machine.
pub(crate) async fn start(
    address: SocketAddr,
    node: Arc<Node>,
    streaming: Arc<Streaming>,
) -> anyhow::Result<()> {
    let step = format!("listen on metrics.listen {address}");
    let listener = TcpListener::bind(address).await.context(step.clone())?;
    let address = listener.local_addr().context(step)?;
    // The metrics have the names of pods and images in them, and there is no authentication.
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "whoever can reach metrics.listen can read the metrics: consider 127.0.0.1"
        );
    }
    tracing::info!(%address, "serving metrics");
    // The registry gets clones of the gauges, which share the values of these.
    let states = States::default();
    let exporter = Arc::new(Exporter { registry: registry(&states), states, node, streaming });
    tokio::spawn(exporter.accept(listener));
    Ok(())
}

fn registry(states: &States) -> Registry {
    let mut registry = Registry::default();
    METRICS.register(&mut registry);
    let berth = registry.sub_registry_with_prefix("berth");
    berth.register(
        "build",
        "Which berthd this is",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    berth.register("sandboxes", "Pod sandboxes", states.sandboxes.clone());
    berth.register("containers", "Containers", states.containers.clone());
    berth.register("images", "Images", states.images.clone());
    berth.register("image_disk_bytes", "Bytes on disk of all images", states.image_bytes.clone());
    berth.register(
        "network_detachments_pending",
        "Pods whose CNI DEL has not succeeded yet",
        states.pending_detachments.clone(),
    );
    berth.register("trash_entries", "Directories that wait to be deleted", states.trash.clone());
    berth.register(
        "streaming_urls_pending",
        "Streaming URLs that nobody has opened yet",
        states.pending_urls.clone(),
    );
    // The names that all client libraries of Prometheus use for these.
    let process = registry.sub_registry_with_prefix("process");
    process.register("cpu_seconds", "CPU time", states.cpu.clone());
    process.register("resident_memory_bytes", "Resident memory", states.resident.clone());
    process.register("virtual_memory_bytes", "Virtual memory", states.virtual_memory.clone());
    process.register("threads", "Threads", states.threads.clone());
    process.register("open_fds", "Open file descriptors", states.descriptors.clone());
    process.register("max_fds", "Limit of open file descriptors", states.max_descriptors.clone());
    process.register(
        "start_time_seconds",
        "When the daemon started, since the epoch",
        states.started.clone(),
    );
    registry
}

impl Exporter {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut listener = Acceptor::new(listener);
        loop {
            // Taken before a connection is accepted, so that those above the limit wait in the
            // kernel's queue and take no descriptor.
            let Ok(slot) = connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    return tracing::error!("metrics are not served any more: accept: {error}");
                }
            };
            let exporter = self.clone();
            tokio::spawn(async move {
                let _slot = slot;
                exporter.serve(stream).await;
            });
        }
    }

    async fn serve(&self, stream: TcpStream) {
        let service = service_fn(|request| {
            let response = self.respond(&request);
            async { Ok::<_, Infallible>(response) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_REQUEST)
            .serve_connection(TokioIo::new(stream), service);
        // Such as a client that disconnects, or whose request is no HTTP.
        if let Err(error) = serving.await {
            tracing::debug!("a client of /metrics: {error}");
        }
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {}
            (_, "/metrics") => return plain(StatusCode::METHOD_NOT_ALLOWED, "use GET"),
            _ => return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics"),
        }
        self.read_states();
        let mut text = String::new();
        // The registry shares the gauges that were just set.
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

    /// Reads everything that changes between scrapes.
    fn read_states(&self) {
        let node = &self.node;
        let states = &self.states;
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
        let images = &node.host.images;
        states.images.set(images.all().len() as i64);
        states.image_bytes.set(images.usage().bytes as i64);
        states.pending_detachments.set(node.host.networks.pending_detachments() as i64);
        // Both what threads are deleting and what they could not delete.
        states.trash.set(fs::read_dir(node.host.layout.trash()).map_or(0, Iterator::count) as i64);
        states.pending_urls.set(self.streaming.pending_urls() as i64);
        self.read_process();
    }

    /// Reads what the kernel says about this process.
    fn read_process(&self) {
        let states = &self.states;
        let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // proc_pid_stat(5). It is split after the second field, the program's name, which may have
        // spaces and parentheses in it.
        let fields: Vec<u64> = text
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let cpu = (field(14) + field(15)) as f64 / ticks;
        // A counter of this library can only be added to.
        states.cpu.inc_by((cpu - states.cpu.get()).max(0.0));
        states.threads.set(field(20) as i64);
        states.virtual_memory.set(field(23) as i64);
        states.resident.set((field(24) * rustix::param::page_size() as u64) as i64);
        states.descriptors.set(fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as i64);
        // `None` is no limit.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        states.max_descriptors.set(limit.map_or(f64::INFINITY, |limit| limit as f64));
        // The start of the process is in clock ticks since the boot.
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
        states.started.set(boot.unwrap_or(0.0) + field(22) as f64 / ticks);
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

/// Counts how many of `all` are in each of `states`. A state that nothing is in is exported as 0,
/// and not left out: a time series that disappears breaks queries.
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
        container::State::Unknown { .. } => "unknown",
        container::State::Created => "created",
        container::State::Running { .. } => "running",
        container::State::Exited { .. } => "exited",
    }
}
