//! What the daemon tells of itself: how long its steps take, how often what happens, and traces of both.

mod metrics;
mod trace;

use std::time::Instant;

use tracing::Instrument;

pub(crate) use self::{
    metrics::{METRICS, Open, Rpc},
    trace::{RpcSpan, TARGET, Traces},
};

/// Runs one step of an operation: a span of the trace, and a time in `berth_step_seconds`. Both names are few and fixed.
pub(crate) fn step<T>(
    operation: &'static str,
    step: &'static str,
    work: impl Future<Output = T> + Send,
) -> impl Future<Output = T> + Send {
    // Not moved about any more: steps are large.
    let work = Box::pin(work);
    async move {
        let begun = Instant::now();
        let done = work.instrument(tracing::info_span!(target: TARGET, "step", otel.name = step)).await;
        METRICS.step(operation, step, begun.elapsed());
        done
    }
}
