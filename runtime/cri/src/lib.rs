//! The gRPC edge: one unix socket that serves CRI's two services, and berth's own for its command
//! line. This is the only crate that names CRI's messages.

mod admin;
mod authority;
mod code;
mod convert;
mod encoded;
mod events;
mod filter;
mod image;
mod inspect;
mod middleware;
mod runtime;
mod status;
mod trace;

use std::{io, sync::Arc};

use anyhow::Context as _;
use berth_base::accept::Acceptor;
use berth_node::Node;
use berth_proto::{
    berth::images_server::ImagesServer,
    v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use berth_streaming::Streaming;
use futures_util::{
    TryStreamExt,
    stream::{self, Stream},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::oneshot,
};
use tonic::codegen::BoxStream;

/// The largest message in bytes, in both directions. The kubelet and crictl accept the same.
const MAX_MESSAGE: usize = 16 << 20;

/// Serves RPCs until the process ends.
///
/// # Errors
/// The socket accepts no more clients.
pub async fn serve(
    node: Arc<Node>,
    streaming: Arc<Streaming>,
    listener: UnixListener,
) -> anyhow::Result<()> {
    let events = events::Events::start(node.clone());
    let items = encoded::EncodedItems::default();
    let runtime = RuntimeServiceServer::new(runtime::Runtime {
        node: node.clone(),
        streaming,
        events,
        items,
    });
    let admin = ImagesServer::new(admin::Admin { node: node.clone() });
    let images = ImageServiceServer::new(image::Images { node });
    // tonic ignores errors of the stream of connections, so the listener's end comes by a channel.
    let (sender, failed) = oneshot::channel();
    let serving = tonic::transport::Server::builder()
        .layer(middleware::Middleware)
        .add_service(
            runtime.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            images.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(admin)
        .serve_with_incoming(connections(listener, sender).map_ok(authority::AnyAuthority::new));
    tokio::select! {
        served = serving => served.context("serve gRPC"),
        Ok(error) = failed => Err(error).context("accept clients of the socket"),
    }
}

/// The clients that connect. When the listener fails, the error goes to `failed` and no more
/// clients come: tonic would try again forever.
fn connections(
    listener: UnixListener,
    failed: oneshot::Sender<io::Error>,
) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold((Acceptor::new(listener), failed), async |(mut listener, failed)| {
        match listener.accept().await {
            Ok(client) => Some((Ok(client), (listener, failed))),
            Err(error) => {
                // The receiver is gone only if the daemon is ending at this moment.
                let _ = failed.send(error);
                std::future::pending().await
            }
        }
    })
}

/// How many items one message of a streamed list has. Even with the largest items such a message
/// stays far below `MAX_MESSAGE`.
const CHUNK: usize = 100;

/// Streams a list in messages of up to `CHUNK` items, so that no list is too long for a message
/// (KEP 5825). An empty list is a stream without messages.
fn chunks<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> BoxStream<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let next = move || {
        let chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then(|| Ok(message(chunk)))
    };
    Box::pin(futures_util::stream::iter(std::iter::from_fn(next)))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_streamed_list_has_every_item_once_and_no_empty_message() {
        for (count, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (CHUNK, vec![CHUNK]),
            (2 * CHUNK + 1, vec![CHUNK, CHUNK, 1]),
        ] {
            let messages: Vec<_> = chunks((0..count).collect(), |chunk| chunk).collect().await;
            let messages: Vec<Vec<usize>> = messages.into_iter().map(Result::unwrap).collect();
            assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert!(messages.into_iter().flatten().eq(0..count));
        }
    }
}
