//! Copies between a client and the streams of a process, whether that is a container's first or an
//! exec. The process has pipes, or a terminal; the client has one connection.

use std::{future, io, io::IoSlice, os::fd::OwnedFd};

use berth_node::container::{
    drain::Drain,
    stdio::{self, Terminal, Window},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
    sync::{Mutex, watch},
};

use super::{
    detach::{Detach, Typed},
    frames::{self, Stream},
};
use crate::http::{client::Client, upgrade::Framing};

/// The most that one read takes, in bytes.
const CHUNK: usize = 64 << 10;

/// The ends of a process' streams that are the daemon's.
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
pub(crate) fn open((stdin, stdout, stderr): (bool, bool, bool)) -> io::Result<(Own, Theirs)> {
    let (in_read, stdin) = stdin.then(stdio::input).transpose()?.unzip();
    let (stdout, out_write) = stdout.then(stdio::output).transpose()?.unzip();
    let (stderr, err_write) = stderr.then(stdio::output).transpose()?.unzip();
    let theirs = Theirs { stdin: in_read, stdout: out_write, stderr: err_write };
    Ok((Own { stdin, stdout, stderr }, theirs))
}

impl Own {
    /// Those of a terminal, which has one output.
    pub(crate) fn of(terminal: Terminal) -> (Self, Window, OwnedFd) {
        let Terminal { input, output, window, theirs } = terminal;
        (Self { stdin: Some(input), stdout: Some(output), stderr: None }, window, theirs)
    }

    /// Reads what the process writes and drops it, until the end: without a reader it would block,
    /// or be killed by SIGPIPE.
    pub(crate) async fn discard(&self, ended: watch::Receiver<bool>) {
        let discard = async |pipe: &Option<pipe::Receiver>| {
            let Some(pipe) = pipe else { return };
            let mut drain = Drain::new(pipe, ended.clone());
            let mut buffer = vec![0; CHUNK];
            while let Ok(1..) = drain.read(&mut buffer).await {}
        };
        tokio::join!(discard(&self.stdout), discard(&self.stderr));
    }
}

/// How the client's bytes are taken.
#[derive(Debug)]
pub(crate) struct Rules {
    pub framing: Framing,
    /// The keys that leave a terminal.
    pub detach: Option<Detach>,
    /// Whether the session goes on when the client has no more input. Otherwise the end of it is
    /// how the client leaves.
    pub outlives_input: bool,
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process has closed its output.
    Output,
    /// The client has left, by its keys or without a word.
    Left,
    /// By its keys.
    Detached,
}

/// Copies until the process has closed its output, or the client is gone. Once `ended` is true,
/// what is in the pipes is all that counts.
pub(crate) async fn copy(
    own: &mut Own,
    rules: Rules,
    client: &mut Client,
    ended: watch::Receiver<bool>,
) -> End {
    let Client { input, output, presence } = client;
    let stdin = own.stdin.take();
    let has_output = own.stdout.is_some() || own.stderr.is_some();
    let writer = Mutex::new(output);
    let Rules { framing, detach, outlives_input } = rules;
    let forwarding = async {
        if !has_output {
            future::pending::<()>().await;
        }
        let (stdout, stderr) = tokio::join!(
            forward(own.stdout.as_ref(), Stream::Stdout, framing, &writer, ended.clone()),
            forward(own.stderr.as_ref(), Stream::Stderr, framing, &writer, ended.clone()),
        );
        if stdout.and(stderr).is_ok() { End::Output } else { End::Left }
    };
    let feeding = async {
        let has_stdin = stdin.is_some();
        match feed(input, stdin, detach).await {
            End::Output if has_stdin && !outlives_input => End::Left,
            End::Output => future::pending().await,
            end => end,
        }
    };
    tokio::select! {
        // First, so that nothing is lost of a process that has ended when its client leaves.
        biased;
        end = forwarding => end,
        end = feeding => end,
        () = presence.gone() => End::Left,
    }
}

/// Copies what the client sends. Its end, or `End::Output`, closes the pipe, and whose pipe it is
/// decides what that means.
async fn feed(
    client: &mut (impl AsyncRead + Unpin),
    stdin: Option<pipe::Sender>,
    mut detach: Option<Detach>,
) -> End {
    let mut buffer = vec![0; CHUNK];
    let mut stdin = stdin;
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let chunk = &buffer[..length];
        let typed = match &mut detach {
            Some(detach) => detach.read(chunk),
            None => Typed::Pass(chunk.to_vec()),
        };
        let (Typed::Pass(bytes) | Typed::Detached(bytes)) = &typed;
        // What nobody asked for is read all the same, so that the end is noticed.
        if let Some(pipe) = &mut stdin
            && pipe.write_all(bytes).await.is_err()
        {
            stdin = None;
        }
        if matches!(typed, Typed::Detached(_)) {
            return End::Detached;
        }
    }
    if let (Some(pipe), Some(detach)) = (&mut stdin, &mut detach) {
        let _ = pipe.write_all(&detach.finish()).await;
    }
    End::Output
}

/// Copies one stream of the process to the client.
///
/// # Errors
/// The client takes no more.
async fn forward(
    pipe: Option<&pipe::Receiver>,
    stream: Stream,
    framing: Framing,
    client: &Mutex<impl AsyncWrite + Unpin>,
    ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    let mut drain = Drain::new(pipe, ended);
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = drain.read(&mut buffer).await {
        send(&mut *client.lock().await, framing, stream, &buffer[..length]).await?;
    }
    Ok(())
}

/// Sends a chunk of output.
///
/// # Errors
/// The client takes no more.
pub(crate) async fn send(
    client: &mut (impl AsyncWrite + Unpin),
    framing: Framing,
    stream: Stream,
    chunk: &[u8],
) -> io::Result<()> {
    let mut sent = 0;
    if framing == Framing::Multiplexed {
        let header = frames::header(stream, chunk.len() as u32);
        let parts = [IoSlice::new(&header), IoSlice::new(chunk)];
        let written = client.write_vectored(&parts).await?;
        if written < header.len() {
            client.write_all(&header[written..]).await?;
        }
        sent = written.saturating_sub(header.len());
    }
    client.write_all(&chunk[sent..]).await?;
    client.flush().await
}
