//! Every RPC from outside: counted and timed, a span of the caller's trace, and corrected where tonic answers by itself.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::telemetry::{METRICS, Rpc, RpcSpan};

#[derive(Clone, Copy, Debug)]
pub(super) struct Observe;

#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
}

impl<S> Layer<S> for Observe {
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
        let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let limit = request.headers().get("grpc-timeout").and_then(|value| deadline(value.to_str().ok()?));
        let span = RpcSpan::new(&service, &method, request.headers());
        let answer = span.around(self.inner.call(request));
        async move {
            let answered = correct(answer, &method, limit).await?;
            // Unary answers have their error in the headers, and streams theirs at the end, which is not waited for.
            let code = Status::from_header_map(answered.headers()).map_or(Code::Ok, |status| status.code());
            // What is not served may be called anything.
            let method = if code == Code::Unimplemented { "unknown".to_owned() } else { method };
            METRICS.rpc(Rpc { grpc_service: service_name(service), grpc_method: method }, code, begun.elapsed());
            span.end(code);
            Ok(answered)
        }
        .boxed()
    }
}

/// Says which RPC is not served, and that a deadline has passed.
async fn correct<R: Default, E>(
    answer: impl Future<Output = Result<Response<R>, E>>,
    method: &str,
    limit: Option<Duration>,
) -> Result<Response<R>, E> {
    let answered = match limit {
        // A moment before tonic would answer CANCELLED, which is the code of a client that gave up.
        Some(limit) => tokio::time::timeout(limit.saturating_sub(Duration::from_millis(1)), answer).await,
        None => Ok(answer.await),
    };
    let Ok(answered) = answered else {
        return Ok(Status::deadline_exceeded(format!("{method} took longer than the client's deadline")).into_http());
    };
    let mut response = answered?;
    let unimplemented = response.headers().get("grpc-status").is_some_and(|status| status == "12");
    if unimplemented && let Ok(message) = HeaderValue::from_str(&format!("berth does not serve {method} yet")) {
        response.headers_mut().insert("grpc-message", message);
    }
    Ok(response)
}

/// `grpc-timeout` of gRPC over HTTP/2: up to eight digits and a unit.
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
