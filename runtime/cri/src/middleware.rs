//! What surrounds every RPC: it is counted, timed, and a span in the caller's trace. Responses that
//! tonic makes by itself are corrected.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use berth_base::observe::{METRICS, Rpc, before, steps};
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::{code, trace::RpcSpan};

/// A layer for tonic's server, around both of CRI's services and berth's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Middleware;

#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
}

impl<S> Layer<S> for Middleware {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner }
    }
}

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let begun = Instant::now();
        // "/runtime.v1.RuntimeService/Version"
        let mut parts = request.uri().path().split('/').skip(1).map(str::to_owned);
        let service = parts.next().unwrap_or_default();
        let method = parts.next().unwrap_or_default();
        let limit =
            request.headers().get("grpc-timeout").and_then(|value| deadline(value.to_str().ok()?));
        let span = RpcSpan::new(&service, &method, request.headers());
        let responding = span.around(self.inner.call(request));
        async move {
            let response = correct(responding, &method, limit).await?;
            // A unary RPC that failed has its status in the headers. A stream has it in the
            // trailers, at an end that may be days away: it counts as OK once it has begun.
            let code = Status::from_header_map(response.headers())
                .map_or(Code::Ok, |status| status.code());
            // The name of a method that is not served comes from the client, who could make up any
            // number of time series with it.
            let method = if code == Code::Unimplemented { "unknown".to_owned() } else { method };
            METRICS.rpc(
                Rpc { grpc_service: service_name(service), grpc_method: method },
                code::name(code),
                begun.elapsed(),
            );
            span.end(code);
            match before(steps::rpc::RESPONSE) {
                Ok(()) => Ok(response),
                Err(error) => Ok(Status::internal(error.message).into_http()),
            }
        }
        .boxed()
    }
}

/// Corrects what tonic responds by itself: at the client's deadline, and to an RPC that is not
/// served.
async fn correct<R: Default, E>(
    responding: impl Future<Output = Result<Response<R>, E>>,
    method: &str,
    limit: Option<Duration>,
) -> Result<Response<R>, E> {
    let ended = match limit {
        // A moment before tonic's own timer, which would respond CANCELLED. That is the code of a
        // client that gave up; the kubelet acts on DEADLINE_EXCEEDED.
        Some(limit) => {
            tokio::time::timeout(limit.saturating_sub(Duration::from_millis(1)), responding).await
        }
        None => Ok(responding.await),
    };
    let Ok(responded) = ended else {
        return Ok(Status::deadline_exceeded(format!(
            "{method} took longer than the client's deadline"
        ))
        .into_http());
    };
    let mut response = responded?;
    // The text of the stubs that gRPC generates for Go. Clients recognize a server without this RPC
    // by it: Kubernetes' checkpoint tests are skipped then.
    let unimplemented = response.headers().get("grpc-status").is_some_and(|status| status == "12");
    if unimplemented
        && let Ok(message) = HeaderValue::from_str(&format!("method {method} not implemented"))
    {
        response.headers_mut().insert("grpc-message", message);
    }
    Ok(response)
}

/// Parses the header `grpc-timeout` (gRPC over HTTP/2): up to eight digits and a unit.
fn deadline(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The label of a service in metrics. As with methods, only those that are served have a name.
fn service_name(service: String) -> String {
    match service.as_str() {
        "runtime.v1.RuntimeService" | "runtime.v1.ImageService" | "berth.v1.Images" => service,
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1m", Some(Duration::from_millis(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("240S", Some(Duration::from_secs(240))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5x", None),
        ] {
            assert_eq!(deadline(text), expected, "{text}");
        }
    }
}
