//! The spans of a request, of whichever edge. A caller that sends its W3C trace context in the
//! headers, as the kubelet and docker compose do, finds them in its own trace. Log lines of a request
//! have the id of that trace, whether or not berthd exports spans.

use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TraceId},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Headers, in the form that the propagator reads.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The two spans of one request. One is exported, and is part of the caller's trace if there is one.
/// The other gives log lines their request and trace id: the attributes of the exported one would
/// fill every line.
#[derive(Clone, Debug)]
pub struct RequestSpans {
    trace: Span,
    log: Span,
}

impl RequestSpans {
    /// `trace` has the field `otel.status_code` and `log` the field `trace_id`, both empty.
    pub fn new(trace: Span, log: Span, headers: &HeaderMap) -> Self {
        if let Some(id) = join_caller(&trace, headers) {
            log.record("trace_id", tracing::field::display(id));
        }
        Self { trace, log }
    }

    /// Runs `work` inside of these spans.
    pub fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        work.instrument(self.trace.clone()).instrument(self.log.clone())
    }

    /// Records how the request was answered, in a field of the exported span.
    pub fn end(&self, field: &str, status: i32, failed: bool) {
        self.trace.record(field, status);
        if failed {
            self.trace.record("otel.status_code", "ERROR");
        }
    }
}

/// Makes `span` part of the caller's trace, if there is one. Returns the id of the span's trace,
/// and the caller's where no spans are exported.
fn join_caller(span: &Span, headers: &HeaderMap) -> Option<TraceId> {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Read before `set_parent` takes the context.
    let of_caller = parent.span().span_context().trace_id();
    // It fails if no traces are exported. The log lines then have the caller's trace id.
    let _ = span.set_parent(parent);
    let own = span.context().span().span_context().trace_id();
    [own, of_caller].into_iter().find(|id| *id != TraceId::INVALID)
}
