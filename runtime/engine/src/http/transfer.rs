//! Bodies that are made and taken by work that blocks, such as tars. A few chunks are under way at
//! most, so that whoever is faster waits.

use std::io::{self, Read, Write};

use berth_base::{blocking::spawn_blocking, chunks::ChunkWriter};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// Chunks that wait for the other side.
const WAITING: usize = 4;

/// Runs `work` on another thread, and returns what it writes. If it fails the stream breaks off. If
/// the client is gone, its next write fails.
pub(crate) fn send(
    work: impl FnOnce(&mut dyn Write) -> anyhow::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (sender, receiver) = mpsc::channel(WAITING);
    spawn_blocking(move || {
        let mut writer = ChunkWriter::new(CHUNK, |chunk| {
            sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
        });
        let done = work(&mut writer).and_then(|()| Ok(writer.flush()?));
        if let Err(error) = done {
            tracing::debug!("a body breaks off: {error:#}");
            // Nobody may be there any more to hear of it.
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
}

/// Runs `work`, which reads the body, on another thread, and returns its result once the whole body
/// has come: a client that still sends would not read an answer.
///
/// # Errors
/// That of `work`.
pub(crate) async fn receive<T: Send + 'static>(
    mut body: Incoming,
    work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut reader = ChunkReader { receiver, chunk: Bytes::new() };
    let working = spawn_blocking(move || work(&mut reader));
    while let Some(frame) = body.frame().await {
        let chunk = match frame {
            Ok(frame) => frame.into_data().map_err(|_| None),
            Err(error) => Err(Some(io::Error::other(error))),
        };
        match chunk {
            // What nobody reads any more is dropped.
            Ok(bytes) => drop(sender.send(Ok(bytes)).await),
            // Trailers say nothing here.
            Err(None) => {}
            Err(Some(broken)) => {
                let _ = sender.send(Err(broken)).await;
                break;
            }
        }
    }
    drop(sender);
    Ok(working.await?)
}

struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}
