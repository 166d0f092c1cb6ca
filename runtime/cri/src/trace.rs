//! The spans of RPCs.

use berth_base::observe::{RequestSpans, TARGET};
use http::HeaderMap;
use tonic::Code;
use tracing::field::Empty;

/// The two spans of one RPC.
#[derive(Clone, Debug)]
pub(crate) struct RpcSpan(RequestSpans);

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
        let log = tracing::info_span!("rpc", method, trace_id = Empty);
        Self(RequestSpans::new(trace, log, headers))
    }

    /// Runs `work` inside of these spans.
    pub(crate) fn around<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.0.around(work)
    }

    /// Records the status code of the response.
    pub(crate) fn end(&self, code: Code) {
        self.0.end("rpc.grpc.status_code", code as i32, code != Code::Ok);
    }
}
