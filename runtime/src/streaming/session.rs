//! Exec and attach: a client's channels on one side, a process on the other.

use std::{fs::File, io, os::fd::OwnedFd};

use anyhow::Context;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    channels::{Channels, Input, Outcome, Output, Wanted},
    descriptor::{self, Reader, Window, Writer},
};
use crate::{container::Container, error::Result, machine::Machine};

/// Of what a client says about its window; no more of it is kept than that.
const MAX_RESIZE: usize = 4096;

/// Runs `command` in a container until its end, or until the client is gone: then it is killed.
pub(crate) async fn exec(
    machine: &Machine,
    container: &Container,
    command: Vec<String>,
    tty: bool,
    mut channels: Channels,
) {
    let outcome = match run(machine, container, command, tty, &mut channels).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(error.message),
    };
    channels.end(&outcome).await;
}

async fn run(
    machine: &Machine,
    container: &Container,
    command: Vec<String>,
    tty: bool,
    channels: &mut Channels,
) -> Result<Outcome> {
    let pid = container.pid().filter(|_| tty);
    let (stdio, window, theirs) = Stdio::open(pid, channels).await.context("open the command's streams")?;
    let mut execution = container.start_exec(machine, command, tty, &theirs.iter().collect::<Vec<_>>()).await?;
    drop(theirs);
    let (ended, end) = watch::channel(false);
    let mut gone = channels.gone.clone();
    let resize = |width, height| window.iter().for_each(|window| window.resize(width, height));
    let copying = stdio.copy(channels, end, resize);
    let waiting = async {
        let code = tokio::select! {
            code = execution.ended() => Some(code),
            _ = gone.wait_for(|gone| *gone) => None,
        };
        if code.is_none() {
            execution.kill().await;
        }
        ended.send_replace(true);
        code
    };
    match tokio::join!(copying, waiting).1.transpose()? {
        Some(0) => Ok(Outcome::Success),
        Some(code) => Ok(Outcome::ExitCode(code)),
        None => Ok(Outcome::Failed("the client left".to_owned())),
    }
}

/// Joins a client to the streams of a container's first process until that ends or the client leaves.
pub(crate) async fn attach(container: &Container, wanted: Wanted, mut channels: Channels) {
    let outcome = match join(container, wanted, &mut channels).await {
        Ok(()) => Outcome::Success,
        Err(error) => Outcome::Failed(error.message),
    };
    channels.end(&outcome).await;
}

async fn join(container: &Container, wanted: Wanted, channels: &mut Channels) -> Result<()> {
    let streams = [wanted.stdin, wanted.stdout, wanted.stderr];
    let (stdio, theirs) = Stdio::pipes(streams).context("open the client's streams")?;
    let theirs: Vec<OwnedFd> = theirs.into_iter().flatten().collect();
    let connection = container.attach(streams.into(), &theirs.iter().collect::<Vec<_>>()).await?;
    drop(theirs);
    let (ended, end) = watch::channel(false);
    let mut gone = channels.gone.clone();
    // Only the last size matters.
    let (resizing, mut size) = watch::channel((0, 0));
    let copying = stdio.copy(channels, end, move |width, height| {
        resizing.send_replace((width, height));
    });
    let waiting = async {
        let resizes = async {
            while size.changed().await.is_ok() {
                let (width, height) = *size.borrow_and_update();
                container.resize(width, height).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = connection.closed() => {}
            _ = gone.wait_for(|gone| *gone) => {}
            () = resizes => {}
        }
        ended.send_replace(true);
    };
    let _ = tokio::join!(copying, waiting);
    Ok(())
}

/// Our ends.
struct Stdio {
    stdin: Option<Writer>,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
}

impl Stdio {
    /// With the ends of the process: a terminal in the container of the process `tty`, or its three streams, of which /dev/null is what
    /// nobody asked for.
    async fn open(tty: Option<u32>, channels: &Channels) -> io::Result<(Self, Option<Window>, Vec<OwnedFd>)> {
        if let Some(pid) = tty {
            let (stdin, stdout, window, slave) = descriptor::terminal(pid).await?;
            let stdio = Self { stdin: Some(stdin), stdout: Some(stdout), stderr: None };
            return Ok((stdio, Some(window), vec![slave]));
        }
        let streams = [channels.stdin.is_some(), channels.stdout.is_some(), channels.stderr.is_some()];
        let (stdio, theirs) = Self::pipes(streams)?;
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let theirs: io::Result<_> = theirs.into_iter().map(|their| their.map_or_else(null, Ok)).collect();
        Ok((stdio, None, theirs?))
    }

    /// Pipes for those of stdin, stdout and stderr that are true, with the ends of the process.
    fn pipes([stdin, stdout, stderr]: [bool; 3]) -> io::Result<(Self, [Option<OwnedFd>; 3])> {
        let (in_read, stdin) = stdin.then(descriptor::input).transpose()?.unzip();
        let (stdout, out_write) = stdout.then(descriptor::output).transpose()?.unzip();
        let (stderr, err_write) = stderr.then(descriptor::output).transpose()?.unzip();
        Ok((Self { stdin, stdout, stderr }, [in_read, out_write, err_write]))
    }
}

impl Stdio {
    /// Copies between a client and a process until `ended` is true and all output is told, or the client is gone.
    async fn copy(self, channels: &mut Channels, ended: watch::Receiver<bool>, mut resize: impl FnMut(u16, u16)) {
        let Self { stdin, stdout, stderr } = self;
        let Channels { stdin: input, stdout: out, stderr: err, resize: sizes, gone, .. } = channels;
        let outputs = async {
            let copy = async |from: Option<Reader>, to: &Option<Output>| {
                if let (Some(from), Some(to)) = (from, to) {
                    // An error is of a client that left.
                    let _ = from.copy_to(to, ended.clone()).await;
                }
            };
            tokio::join!(copy(stdout, out), copy(stderr, err));
            // Outputs may be closed long before the process ends, or be nobody's.
            let _ = ended.clone().wait_for(|ended| *ended).await;
        };
        let inputs = async {
            if let (Some(to), Some(input)) = (stdin, input) {
                to.copy_from(input).await;
            }
        };
        let sizes = async {
            if let Some(sizes) = sizes {
                read_sizes(sizes, &mut resize).await;
            }
        };
        let both = async {
            tokio::join!(inputs, sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = outputs => {}
            () = both => {}
            _ = gone.wait_for(|gone| *gone) => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// JSON objects one after the other, cut as they come.
async fn read_sizes(input: &mut Input, resize: &mut impl FnMut(u16, u16)) {
    let mut text = Vec::new();
    while let Some(bytes) = input.recv().await {
        text.extend_from_slice(&bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut taken = 0;
        while let Some(Ok(size)) = sizes.next() {
            taken = sizes.byte_offset();
            resize(size.width, size.height);
        }
        text.drain(..taken);
        if text.len() > MAX_RESIZE {
            return;
        }
    }
}
