//! Sets up where the daemon's log lines and spans go.

use anyhow::Context;
use berth_base::observe::TARGET;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{arguments::LogFormat, traces::Traces};

/// Sends log lines to standard error, and spans to the collector that the environment names.
///
/// `level` is a level for berth's own crates, or directives as `tracing_subscriber::EnvFilter`
/// takes them.
///
/// # Errors
/// `level` or an environment variable is not valid.
pub(crate) fn start(level: &str, format: LogFormat) -> anyhow::Result<Option<Traces>> {
    // A level alone is for berth's own crates, whose names all begin with "berth". Those of others,
    // such as HTTP/2 frames, have to be asked for.
    let directives =
        if level.contains(['=', ',']) { level.to_owned() } else { format!("warn,berth={level}") };
    let filter = tracing_subscriber::EnvFilter::try_new(directives).context("--log-level")?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines
            .with_target(false)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Absent unless the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT).
    let traces = Traces::from_environment()?;
    let spans = traces.as_ref().map(|traces| {
        // Spans of libraries are not berth's to export.
        let only = Targets::new().with_target(TARGET, tracing::Level::INFO);
        tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_filter(only)
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    Ok(traces)
}
