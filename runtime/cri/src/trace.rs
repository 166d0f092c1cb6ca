//! The spans of RPCs. A caller that sends its W3C trace context in gRPC's metadata, as the kubelet
//! does, finds them in its own trace. Log lines of an RPC have the id of that trace, whether or not
//! berthd exports spans.

use berth_base::observe::TARGET;
use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TraceId},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// gRPC's metadata, in the form that the propagator reads.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The two spans of one RPC. One is exported, and is part of the caller's trace if there is one.
/// The other gives log lines their method and trace id.
#[derive(Clone, Debug)]
pub(crate) struct RpcSpan {
    trace: Span,
    log: Span,
}

impl RpcSpan {
    pub(crate) fn new(service: &str, method: &str, headers: &HeaderMap) -> Self {
        let trace = tracing::info_span!(
            target: TARGET,
            "rpc",
            otel.name = format!("{service}/{method}"),
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
        );
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        // Read before `set_parent` takes the context.
        let of_caller = parent.span().span_context().trace_id();
        // It fails if no traces are exported. The log lines then have the caller's trace id.
        let _ = trace.set_parent(parent);
        let own = trace.context().span().span_context().trace_id();
        // A span of its own, because the attributes of the exported one would fill every log line.
        let log = tracing::info_span!("rpc", method, trace_id = Empty);
        if let Some(id) = [own, of_caller].into_iter().find(|id| *id != TraceId::INVALID) {
            log.record("trace_id", tracing::field::display(id));
        }
        Self { trace, log }
    }

    /// Runs `work` inside of these spans.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        work.instrument(self.trace.clone()).instrument(self.log.clone())
    }

    /// Records the status code of the response.
    pub(crate) fn end(&self, code: Code) {
        self.trace.record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            self.trace.record("otel.status_code", "ERROR");
        }
    }
}
