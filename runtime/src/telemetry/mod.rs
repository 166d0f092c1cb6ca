//! What the daemon tells of itself: how long its steps take, how often what happens, and traces of both.

mod metrics;

use std::time::Instant;

use tracing::{Instrument, Span};

pub(crate) use self::metrics::{METRICS, Open, Rpc};

/// Runs one step of an operation: a span of the trace, and a time in `berth_step_seconds`. Both names are few and fixed.
pub(crate) async fn step<T>(operation: &'static str, step: &'static str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = work.instrument(tracing::info_span!("step", otel.name = step)).await;
    METRICS.step(operation, step, begun.elapsed());
    done
}

/// The span of an RPC from outside.
pub(crate) fn rpc_span(service: &str, method: &str, _headers: &http::HeaderMap) -> Span {
    tracing::info_span!("rpc", otel.name = format!("{service}/{method}"))
}

pub(crate) fn end_rpc(_span: &Span, _code: tonic::Code) {}
