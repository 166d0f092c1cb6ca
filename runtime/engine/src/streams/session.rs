//! Copies between a client and the streams of a process, whether that is a container's first or an
//! exec. The process has pipes, or a terminal; the client has one connection.

use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
};

use anyhow::Context;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
    sync::Mutex,
};

use crate::http::upgrade::Framing;

/// The most that one read takes, in bytes.
const CHUNK: usize = 32 << 10;

/// Docker's numbers of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// The ends of the pipes that are the daemon's.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

/// The ends that are the process'.
#[derive(Debug, Default)]
pub(crate) struct Theirs {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Makes a pipe for each stream that is wanted.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn open((stdin, stdout, stderr): (bool, bool, bool)) -> anyhow::Result<(Own, Theirs)> {
    let mut own = Own::default();
    let mut theirs = Theirs::default();
    if stdin {
        let (reader, writer) = io::pipe().context("pipe")?;
        own.stdin = Some(pipe::Sender::from_owned_fd(writer.into()).context("watch a pipe")?);
        theirs.stdin = Some(reader.into());
    }
    for (wanted, own, theirs) in [
        (stdout, &mut own.stdout, &mut theirs.stdout),
        (stderr, &mut own.stderr, &mut theirs.stderr),
    ] {
        if wanted {
            let (reader, writer) = io::pipe().context("pipe")?;
            *own = Some(pipe::Receiver::from_owned_fd(reader.into()).context("watch a pipe")?);
            *theirs = Some(writer.into());
        }
    }
    Ok((own, theirs))
}

/// Copies until the process has closed its output, or the client does not take it any more.
pub(crate) async fn copy<C: AsyncRead + AsyncWrite>(own: Own, framing: Framing, client: C) {
    let (reader, writer) = tokio::io::split(client);
    let writer = Mutex::new(writer);
    let Own { stdin, stdout, stderr } = own;
    let has_output = stdout.is_some() || stderr.is_some();
    {
        let output = async {
            tokio::join!(
                forward(stdout, Stream::Stdout, framing, &writer),
                forward(stderr, Stream::Stderr, framing, &writer),
            );
        };
        let input = feed(reader, stdin);
        tokio::pin!(output, input);
        if has_output {
            tokio::select! {
                () = &mut output => {}
                // The end of the input is not the end of the client, which may read on.
                () = &mut input => output.await,
            }
        } else {
            input.await;
        }
    }
    let _ = writer.into_inner().shutdown().await;
}

/// Copies what the client sends. Its end closes the pipe, and the shim decides what that means.
async fn feed(mut client: impl AsyncRead + Unpin, stdin: Option<pipe::Sender>) {
    let mut buffer = vec![0; CHUNK];
    let mut stdin = stdin;
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        // What nobody asked for is read all the same, so that the end is noticed.
        let Some(pipe) = &mut stdin else { continue };
        if pipe.write_all(&buffer[..length]).await.is_err() {
            stdin = None;
        }
    }
}

/// Copies one stream of the process to the client.
async fn forward(
    pipe: Option<pipe::Receiver>,
    stream: Stream,
    framing: Framing,
    client: &Mutex<impl AsyncWrite + Unpin>,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let mut client = client.lock().await;
        let sent = match framing {
            Framing::Raw => client.write_all(&buffer[..length]).await,
            Framing::Multiplexed => send(&mut *client, stream, &buffer[..length]).await,
        };
        if sent.is_err() || client.flush().await.is_err() {
            return;
        }
    }
}

/// Sends a chunk behind its header: the stream, three zeros, and the length, big-endian.
async fn send(
    client: &mut (impl AsyncWrite + Unpin),
    stream: Stream,
    chunk: &[u8],
) -> io::Result<()> {
    let mut header = [0; 8];
    header[0] = stream as u8;
    header[4..].copy_from_slice(&(chunk.len() as u32).to_be_bytes());
    let mut written = client.write_vectored(&[IoSlice::new(&header), IoSlice::new(chunk)]).await?;
    if written < header.len() {
        client.write_all(&header[written..]).await?;
        written = header.len();
    }
    client.write_all(&chunk[written - header.len()..]).await
}
