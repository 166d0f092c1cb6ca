//! The gRPC edge: one unix socket with CRI's two services, and berth's own for its command line. Only this folder names CRI's messages.

mod calls;
mod convert;
mod events;
mod filter;
mod image;
mod inspect;
mod own;
mod runtime;
mod status;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context as _;
use berth_proto::{
    berth::images_server::ImagesServer,
    v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::BoxStream;

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
        .layer(calls::Observe)
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

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

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
