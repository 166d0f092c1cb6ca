//! The gRPC edge: one unix socket with CRI's two services, and berth's own for its command line. Only this folder names CRI's messages.

mod convert;
mod events;
mod filter;
mod image;
mod inspect;
mod observe;
mod own;
mod runtime;
mod status;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use berth_proto::{
    berth::images_server::ImagesServer,
    v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Status, codegen::BoxStream};
use tower::{Layer, Service};

use crate::{node::Node, streaming::Streaming};

/// Of one message, both ways: what kubelet and crictl accept too.
const MAX_MESSAGE: usize = 16 << 20;

/// Binds `path`, for its owner alone. A socket that an earlier daemon left is replaced: the lock on the root says that it is gone.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let during = || format!("listen on {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(during)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(during),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(during)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(during)?;
    Ok(listener)
}

/// Serves until the process ends.
pub(crate) async fn serve(node: Arc<Node>, streaming: Arc<Streaming>, listener: UnixListener) -> anyhow::Result<()> {
    let events = events::Events::start(node.clone());
    let runtime = RuntimeServiceServer::new(runtime::Runtime { node: node.clone(), streaming, events });
    let own = ImagesServer::new(own::Own { node: node.clone() });
    let images = ImageServiceServer::new(image::Images { node });
    tonic::transport::Server::builder()
        .layer(observe::Observe)
        .layer(Corrections)
        .add_service(runtime.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
        .add_service(images.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
        .add_service(own)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .context("serve gRPC")
}

/// Items in one message of a streamed list: the largest of them stay far below what a message may hold.
const PIECE: usize = 100;

/// Every item once, in messages of a few, then the end (KEP 5825).
fn pieces<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> BoxStream<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let next = move || {
        let piece: Vec<T> = items.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then(|| Ok(message(piece)))
    };
    Box::pin(futures_util::stream::iter(std::iter::from_fn(next)))
}

/// Corrects what tonic answers by itself: which RPC is not served, and that a deadline has passed.
#[derive(Clone, Copy, Debug)]
struct Corrections;

#[derive(Clone, Debug)]
struct Corrected<S> {
    inner: S,
}

impl<S> Layer<S> for Corrections {
    type Service = Corrected<S>;

    fn layer(&self, inner: S) -> Corrected<S> {
        Corrected { inner }
    }
}

impl<S, B, R> Service<Request<B>> for Corrected<S>
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
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let limit = request.headers().get("grpc-timeout").and_then(|value| deadline(value.to_str().ok()?));
        let answer = self.inner.call(request);
        async move {
            let answered = match limit {
                // A moment before tonic would answer CANCELLED, which is the code of a client that gave up.
                Some(limit) => tokio::time::timeout(limit.saturating_sub(Duration::from_millis(1)), answer).await,
                None => Ok(answer.await),
            };
            let Ok(answered) = answered else {
                return Ok(
                    Status::deadline_exceeded(format!("{rpc} took longer than the client's deadline")).into_http()
                );
            };
            let mut response = answered?;
            let unimplemented = response.headers().get("grpc-status").is_some_and(|status| status == "12");
            if unimplemented && let Ok(message) = HeaderValue::from_str(&format!("berth does not serve {rpc} yet")) {
                response.headers_mut().insert("grpc-message", message);
            }
            Ok(response)
        }
        .boxed()
    }
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

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

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

    #[tokio::test]
    async fn a_streamed_list_has_every_item_once_and_no_empty_message() {
        for (count, expected) in
            [(0, vec![]), (1, vec![1]), (PIECE, vec![PIECE]), (2 * PIECE + 1, vec![PIECE, PIECE, 1])]
        {
            let messages: Vec<_> = pieces((0..count).collect(), |piece| piece).collect().await;
            let messages: Vec<Vec<usize>> = messages.into_iter().map(Result::unwrap).collect();
            assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert!(messages.into_iter().flatten().eq(0..count));
        }
    }
}
