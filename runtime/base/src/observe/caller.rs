//! The trace of a caller, who sends its W3C trace context in the headers of a request.

use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TraceId},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
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

/// Makes `span` part of the caller's trace, if there is one. Returns the id of the span's trace,
/// and the caller's where no spans are exported.
pub fn join_caller(span: &Span, headers: &HeaderMap) -> Option<TraceId> {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Read before `set_parent` takes the context.
    let of_caller = parent.span().span_context().trace_id();
    // It fails if no traces are exported. The log lines then have the caller's trace id.
    let _ = span.set_parent(parent);
    let own = span.context().span().span_context().trace_id();
    [own, of_caller].into_iter().find(|id| *id != TraceId::INVALID)
}
