//! The exporter of spans: by OTLP, to the collector that the environment names.
//!
//! Nothing is sent unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is
//! set. The SDK reads the other `OTEL_*` variables (OpenTelemetry's environment variable
//! specification).

use std::env;

use anyhow::{Context, bail};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithTonicConfig, tonic_types::transport::ClientTlsConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracerProvider, Tracer},
};

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// The exporter. Spans that are left are sent when it is dropped.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// `None` unless an endpoint is set.
    ///
    /// # Errors
    /// The endpoint is not a URL, the protocol is unknown, or there are no certificate authorities
    /// for TLS.
    pub(crate) fn from_environment() -> anyhow::Result<Option<Self>> {
        let Some((name, endpoint)) = first_set(ENDPOINTS) else { return Ok(None) };
        // The SDK of Rust does not look at these by itself.
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        // The specification's default.
        let (variable, protocol) =
            first_set(PROTOCOLS).unwrap_or((PROTOCOLS[1], "http/protobuf".to_owned()));
        let exporter = match protocol.to_ascii_lowercase().as_str() {
            "http/protobuf" => SpanExporter::builder().with_http().build(),
            "grpc" if endpoint.starts_with("https:") => {
                let tls = ClientTlsConfig::new().with_enabled_roots();
                SpanExporter::builder().with_tonic().with_tls_config(tls).build()
            }
            "grpc" => SpanExporter::builder().with_tonic().build(),
            _ => bail!("{variable}: {protocol:?} is neither \"grpc\" nor \"http/protobuf\""),
        };
        // Without a name of its own, the SDK would call it "unknown_service".
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

fn is(name: &str, value: &str) -> bool {
    env::var(name).is_ok_and(|found| found.eq_ignore_ascii_case(value))
}

/// The first of these variables that is set, with its value. An empty variable counts as unset
/// (OpenTelemetry's environment variable specification).
fn first_set(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    names
        .into_iter()
        .find_map(|name| Some((name, env::var(name).ok().filter(|value| !value.is_empty())?)))
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last spans were not sent: {error}");
        }
    }
}
