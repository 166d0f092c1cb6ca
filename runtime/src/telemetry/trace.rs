//! Traces: the caller's W3C context from gRPC's metadata, a span for each RPC and for its steps, sent by OTLP.
//!
//! Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; the other `OTEL_*` variables are the SDK's
//! (OpenTelemetry's environment variable specification). A trace's id is in the log lines of its RPC either way.

use std::env;

use anyhow::{Context, bail};
use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TraceId, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, Tracer},
};
use tonic::{Code, transport::ClientTlsConfig};
use tracing::{Instrument, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Of spans that are for traces alone, and never for the log.
pub(crate) const TARGET: &str = "trace";
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Sends what is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// `None` unless an endpoint is set.
    ///
    /// # Errors
    /// An endpoint that cannot be one, a protocol that is not spoken, no certificate authorities for TLS.
    pub(crate) fn from_environment() -> anyhow::Result<Option<Self>> {
        let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found.eq_ignore_ascii_case(value));
        let Some((name, endpoint)) = first_set(ENDPOINTS) else { return Ok(None) };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        // Where nothing is said, it is what the specification says.
        let (variable, protocol) = first_set(PROTOCOLS).unwrap_or((PROTOCOLS[1], "http/protobuf".to_owned()));
        let exporter = match protocol.to_ascii_lowercase().as_str() {
            "http/protobuf" => SpanExporter::builder().with_http().build(),
            "grpc" if endpoint.starts_with("https:") => {
                let tls = ClientTlsConfig::new().with_enabled_roots();
                SpanExporter::builder().with_tonic().with_tls_config(tls).build()
            }
            "grpc" => SpanExporter::builder().with_tonic().build(),
            _ => bail!("{variable}: {protocol:?} is neither \"grpc\" nor \"http/protobuf\""),
        };
        let resource = match env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("berthd"),
        };
        let provider = SdkTracerProvider::builder().with_resource(resource.build());
        let exporter = exporter.with_context(|| format!("{name} {endpoint}"))?;
        Ok(Some(Self(provider.with_batch_exporter(exporter).build())))
    }

    pub(crate) fn tracer(&self) -> Tracer {
        self.0.tracer("berthd")
    }
}

/// An empty variable is one that is not set.
fn first_set(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    names.into_iter().find_map(|name| Some((name, env::var(name).ok().filter(|value| !value.is_empty())?)))
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last spans were not sent: {error}");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// An RPC from outside: a span of the caller's trace, if it has one, and words for the log.
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
        let given = parent.span().span_context().trace_id();
        // Fails when no traces are sent.
        let _ = trace.set_parent(parent);
        let own = trace.context().span().span_context().trace_id();
        let log = tracing::info_span!("rpc", method, trace_id = Empty);
        if let Some(id) = [own, given].into_iter().find(|id| *id != TraceId::INVALID) {
            log.record("trace_id", tracing::field::display(id));
        }
        Self { trace, log }
    }

    /// Runs `work` as this RPC.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        work.instrument(self.trace.clone()).instrument(self.log.clone())
    }

    pub(crate) fn end(&self, code: Code) {
        self.trace.record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            self.trace.record("otel.status_code", "ERROR");
        }
    }
}
