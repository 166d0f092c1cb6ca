//! Every RPC from outside: counted and timed, and a span of the caller's trace.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
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
        let span = RpcSpan::new(&service, &method, request.headers());
        let answer = span.around(self.inner.call(request));
        async move {
            let answered = answer.await?;
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

fn service_name(service: String) -> String {
    match service.as_str() {
        "runtime.v1.RuntimeService" | "runtime.v1.ImageService" | "berth.v1.Images" => service,
        _ => "unknown".to_owned(),
    }
}
