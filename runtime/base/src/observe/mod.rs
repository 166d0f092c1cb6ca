//! What the daemon counts and times for its metrics, and the spans of its steps for traces.

mod caller;
mod metrics;
pub mod steps;

use std::{sync::OnceLock, time::Instant};

use tracing::{Instrument, Span};

pub use self::{
    caller::RequestSpans,
    metrics::{HttpRequest, METRICS, Open, Rpc},
    steps::Step,
};

use crate::error::{Error, Result};

/// The target of spans that are for traces alone and never for the log.
pub const TARGET: &str = "trace";

/// Called before each step, if somebody has set it: an error is that of the step, which is not
/// begun. Tests make it kill, stop, delay or fail there. Release builds never call it.
pub static BEFORE_STEP: OnceLock<fn(Step) -> Result<()>> = OnceLock::new();

/// The variable of the environment that names the file in which a test asks for this.
pub const FAULTS: &str = "BERTH_FAULTS";

fn step_span(step: Step) -> Span {
    tracing::info_span!(target: TARGET, "step", otel.name = step.name)
}

/// Runs one step of an operation: a span of the trace, and a duration in `berth_step_seconds`.
///
/// # Errors
/// Those of `work`.
pub fn step<T, E: From<Error>>(
    step: Step,
    work: impl Future<Output = Result<T, E>> + Send,
) -> impl Future<Output = Result<T, E>> + Send {
    // The futures of steps are large, and would be copied into each of the wrappers below.
    let work = Box::pin(work);
    async move {
        before(step)?;
        let begun = Instant::now();
        let done = work.instrument(step_span(step)).await;
        METRICS.step(step, begun.elapsed());
        done
    }
}

/// As `step`, for work that blocks.
///
/// # Errors
/// Those of `work`.
pub fn step_blocking<T, E: From<Error>>(
    step: Step,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    before(step)?;
    let begun = Instant::now();
    let done = step_span(step).in_scope(work);
    METRICS.step(step, begun.elapsed());
    done
}

/// To be called before a step that has a span and a metric of its own.
///
/// # Errors
/// Only in tests, which make the step fail.
pub fn before(step: Step) -> Result<()> {
    match BEFORE_STEP.get() {
        Some(before) if cfg!(debug_assertions) => before(step),
        _ => Ok(()),
    }
}
