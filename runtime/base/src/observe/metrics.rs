//! Metrics for Prometheus, by its conventions: base units, `_total` for what only grows, few values
//! for each label.
//!
//! Counts of events are here, where every module can reach them. States, as the number of
//! containers, are read by the exporter when somebody asks.

use std::{
    sync::{LazyLock, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::steps::Step;

/// The metrics of this process, counted from its start.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Labels with the names that gRPC's own middlewares give them, so that dashboards made for those
/// work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Rpc {
    pub grpc_service: String,
    pub grpc_method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcEnd {
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

/// A request of the engine, with the names that OpenTelemetry gives its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpRequest {
    pub method: &'static str,
    /// The path, with `{name}` for what clients choose.
    pub route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpEnd {
    method: &'static str,
    route: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    operation: &'static str,
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    plugin: String,
    operation: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pull {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Layer {
    /// "pulled" or "reused".
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerEnd {
    reason: &'static str,
}

#[derive(Debug)]
pub struct Metrics {
    rpcs: Family<RpcEnd, Counter>,
    rpc_seconds: Histograms<Rpc>,
    engine_requests: Family<HttpEnd, Counter>,
    engine_request_seconds: Histograms<HttpRequest>,
    steps: Histograms<StepLabels>,
    plugin_seconds: Histograms<Plugin>,
    plugin_errors: Family<Plugin, Counter>,
    pulls: Family<Pull, Counter>,
    pull_seconds: Histogram,
    pub pull_bytes: Counter,
    layers: Family<Layer, Counter>,
    ends: Family<ContainerEnd, Counter>,
    pub cut_off: Counter,
    pub sessions: Gauge,
    pub recovery_seconds: Gauge<f64, AtomicU64>,
}

/// Buckets from 0.5 ms to 16 s, and one for all that takes longer.
fn quick() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rpcs: Family::default(),
            rpc_seconds: Family::new_with_constructor(quick),
            engine_requests: Family::default(),
            engine_request_seconds: Family::new_with_constructor(quick),
            steps: Family::new_with_constructor(quick),
            plugin_seconds: Family::new_with_constructor(quick),
            plugin_errors: Family::default(),
            pulls: Family::default(),
            // Buckets from 0.1 s to 27 minutes.
            pull_seconds: Histogram::new(exponential_buckets(0.1, 2.0, 15)),
            pull_bytes: Counter::default(),
            layers: Family::default(),
            ends: Family::default(),
            cut_off: Counter::default(),
            sessions: Gauge::default(),
            recovery_seconds: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counts an RPC that was answered. `code` is a status code in the spelling of gRPC's Go
    /// library: "OK", "NotFound".
    pub fn rpc(&self, rpc: Rpc, code: &'static str, took: Duration) {
        self.rpc_seconds.get_or_create(&rpc).observe(took.as_secs_f64());
        let Rpc { grpc_service, grpc_method } = rpc;
        self.rpcs.get_or_create(&RpcEnd { grpc_service, grpc_method, grpc_code: code }).inc();
    }

    /// Counts a request of the engine that was answered with this status.
    pub fn engine_request(&self, request: HttpRequest, code: u16, took: Duration) {
        self.engine_request_seconds.get_or_create(&request).observe(took.as_secs_f64());
        let HttpRequest { method, route } = request;
        self.engine_requests.get_or_create(&HttpEnd { method, route, code }).inc();
    }

    /// Counts the run of a CNI plugin.
    pub fn plugin(&self, plugin: &str, operation: &str, took: Duration, failed: bool) {
        let plugin = Plugin { plugin: plugin.to_owned(), operation: operation.to_owned() };
        self.plugin_seconds.get_or_create(&plugin).observe(took.as_secs_f64());
        // Made in any case, so that a plugin that has never failed is at 0 and not absent: a query
        // for the increase would miss the first error.
        let errors = self.plugin_errors.get_or_create_owned(&plugin);
        if failed {
            errors.inc();
        }
    }

    /// Counts a pull that has ended.
    pub fn pull(&self, took: Duration, ok: bool) {
        self.pulls.get_or_create(&Pull { result: if ok { "success" } else { "failure" } }).inc();
        self.pull_seconds.observe(took.as_secs_f64());
    }

    /// Counts a layer of an image that is pulled; `source` is "pulled", or "reused" if it was
    /// there.
    pub fn layer(&self, source: &'static str) {
        self.layers.get_or_create(&Layer { source }).inc();
    }

    /// Counts a container that has ended, with the reason that the kubelet shows.
    pub fn end(&self, reason: &'static str) {
        self.ends.get_or_create(&ContainerEnd { reason }).inc();
    }

    /// Records how long one step of an operation took.
    pub fn step(&self, step: Step, took: Duration) {
        let labels = StepLabels { operation: step.operation, step: step.name };
        self.steps.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "grpc_server_handled",
            "RPCs that were answered, by code",
            self.rpcs.clone(),
        );
        registry.register(
            "grpc_server_handling_seconds",
            "How long RPCs took, streams to their beginning",
            self.rpc_seconds.clone(),
        );
        let registry = registry.sub_registry_with_prefix("berth");
        registry.register(
            "engine_requests",
            "Requests of the Docker Engine API that were answered, by status",
            self.engine_requests.clone(),
        );
        registry.register(
            "engine_request_seconds",
            "How long requests of the Docker Engine API took, streams to their beginning",
            self.engine_request_seconds.clone(),
        );
        registry.register(
            "step_seconds",
            "How long the steps of an operation took",
            self.steps.clone(),
        );
        registry.register(
            "cni_plugin_seconds",
            "How long CNI plugins took",
            self.plugin_seconds.clone(),
        );
        registry.register(
            "cni_plugin_errors",
            "Runs of CNI plugins that failed",
            self.plugin_errors.clone(),
        );
        registry.register("image_pulls", "Pulls that ended", self.pulls.clone());
        registry.register("image_pull_seconds", "How long pulls took", self.pull_seconds.clone());
        registry.register(
            "image_pull_bytes",
            "Bytes that came from registries",
            self.pull_bytes.clone(),
        );
        registry.register(
            "image_layers",
            "Layers of pulled images: pulled, or reused",
            self.layers.clone(),
        );
        registry.register("container_ends", "Containers that ended, by reason", self.ends.clone());
        registry.register(
            "event_listeners_cut_off",
            "Listeners to container events that were cut off because they read too slowly",
            self.cut_off.clone(),
        );
        registry.register(
            "streaming_sessions",
            "Exec, attach and port-forward sessions that are open",
            self.sessions.clone(),
        );
        registry.register(
            "recovery_seconds",
            "How long the daemon took to recover at its start",
            self.recovery_seconds.clone(),
        );
    }

    /// Counts a streaming session for as long as the returned value lives.
    pub fn session(&'static self) -> Open {
        self.sessions.inc();
        Open(&self.sessions)
    }
}

/// One of the things that a gauge counts.
#[derive(Debug)]
pub struct Open(&'static Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
