//! Metrics for Prometheus, by its conventions: base units, `_total` for what only grows, few values for each label.
//!
//! What counts events is here, where every module reaches it; what is a state is read when it is asked for.

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

/// Of this process, from its start.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Rpc {
    pub grpc_service: String,
    pub grpc_method: String,
}

/// As gRPC's own middlewares name it, so that their dashboards work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcEnd {
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
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
    /// Pulled, or reused.
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerEnd {
    reason: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    rpcs: Family<RpcEnd, Counter>,
    rpc_seconds: Histograms<Rpc>,
    steps: Histograms<Step>,
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

/// From 0.5 ms to 16 s, and what is longer.
fn quick() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rpcs: Family::default(),
            rpc_seconds: Family::new_with_constructor(quick),
            steps: Family::new_with_constructor(quick),
            plugin_seconds: Family::new_with_constructor(quick),
            plugin_errors: Family::default(),
            pulls: Family::default(),
            // From 0.1 s to some 27 minutes.
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
    /// The end of an RPC.
    pub(crate) fn rpc(&self, rpc: Rpc, code: tonic::Code, took: Duration) {
        let Rpc { grpc_service, grpc_method } = rpc.clone();
        self.rpcs.get_or_create(&RpcEnd { grpc_service, grpc_method, grpc_code: code_name(code) }).inc();
        self.rpc_seconds.get_or_create(&rpc).observe(took.as_secs_f64());
    }

    /// The end of a plugin's run.
    pub(crate) fn plugin(&self, plugin: &str, operation: &str, took: Duration, failed: bool) {
        let plugin = Plugin { plugin: plugin.to_owned(), operation: operation.to_owned() };
        self.plugin_seconds.get_or_create(&plugin).observe(took.as_secs_f64());
        let errors = self.plugin_errors.get_or_create_owned(&plugin);
        if failed {
            errors.inc();
        }
    }

    /// The end of a pull.
    pub(crate) fn pull(&self, took: Duration, ok: bool) {
        self.pulls.get_or_create(&Pull { result: if ok { "success" } else { "failure" } }).inc();
        self.pull_seconds.observe(took.as_secs_f64());
    }

    /// A layer of an image that is pulled: "pulled" too, or "reused".
    pub(crate) fn layer(&self, source: &'static str) {
        self.layers.get_or_create(&Layer { source }).inc();
    }

    /// A container's end.
    pub(crate) fn end(&self, reason: &'static str) {
        self.ends.get_or_create(&ContainerEnd { reason }).inc();
    }

    /// One step of an operation.
    pub(crate) fn step(&self, operation: &'static str, step: &'static str, took: Duration) {
        self.steps.get_or_create(&Step { operation, step }).observe(took.as_secs_f64());
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("grpc_server_handled", "RPCs that were answered, by code", self.rpcs.clone());
        registry.register(
            "grpc_server_handling_seconds",
            "How long RPCs took, streams to their beginning",
            self.rpc_seconds.clone(),
        );
        let registry = registry.sub_registry_with_prefix("berth");
        registry.register("step_seconds", "How long the steps of an operation took", self.steps.clone());
        registry.register("cni_plugin_seconds", "How long CNI plugins took", self.plugin_seconds.clone());
        registry.register("cni_plugin_errors", "Runs of CNI plugins that failed", self.plugin_errors.clone());
        registry.register("image_pulls", "Pulls that ended", self.pulls.clone());
        registry.register("image_pull_seconds", "How long pulls took", self.pull_seconds.clone());
        registry.register("image_pull_bytes", "Bytes that came from registries", self.pull_bytes.clone());
        registry.register("image_layers", "Layers of pulled images: pulled, or reused", self.layers.clone());
        registry.register("container_ends", "Containers that ended, by reason", self.ends.clone());
        registry.register(
            "event_listeners_cut_off",
            "Listeners to container events who read too slowly",
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

    /// Counts a session for as long as what is returned lives.
    pub(crate) fn session(&'static self) -> Open {
        self.sessions.inc();
        Open(&self.sessions)
    }
}

/// One of what a gauge counts.
#[derive(Debug)]
pub(crate) struct Open(&'static Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// As gRPC's documentation writes codes.
fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "Canceled",
        tonic::Code::Unknown => "Unknown",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::NotFound => "NotFound",
        tonic::Code::AlreadyExists => "AlreadyExists",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::FailedPrecondition => "FailedPrecondition",
        tonic::Code::Aborted => "Aborted",
        tonic::Code::OutOfRange => "OutOfRange",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::Internal => "Internal",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::DataLoss => "DataLoss",
        tonic::Code::Unauthenticated => "Unauthenticated",
    }
}
