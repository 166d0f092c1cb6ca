//! The spans of RPCs. A caller that sends its W3C trace context in gRPC's metadata, as the kubelet
//! does, finds them in its own trace. Log lines of an RPC have the id of that trace, whether or not
//! berthd exports spans.

use berth_base::observe::{TARGET, join_caller};
use http::HeaderMap;
use tonic::Code;
use tracing::{Instrument, Span, field::Empty};

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
        let trace_id = join_caller(&trace, headers);
        // A span of its own, because the attributes of the exported one would fill every log line.
        let log = tracing::info_span!("rpc", method, trace_id = Empty);
        if let Some(id) = trace_id {
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
