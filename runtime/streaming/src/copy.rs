//! Exec and attach: copies between the streams of a client and those of a process.

use std::{fs::File, io, os::fd::OwnedFd};

use anyhow::Context;
use berth_base::error::Result;
use berth_node::container::{
    Container,
    stdio::{self, Terminal, Window},
};
use berth_shim::exec_request::ExecRequest;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    descriptor::{Reader, Writer},
    streams::{Input, Outcome, Output, StreamOptions, Streams},
};

/// Bytes of terminal sizes that are not read yet. A client that sends anything else instead must
/// not fill the memory.
const MAX_RESIZE: usize = 4096;

/// Runs `command` in a container until it ends; if the client leaves before that, it is killed.
pub(super) async fn exec(
    container: &Container,
    command: Vec<String>,
    tty: bool,
    mut streams: Streams,
) {
    let outcome = run(container, command, tty, &mut streams).await;
    streams.end(&outcome.unwrap_or_else(|error| Outcome::Failed(error.message))).await;
}

async fn run(
    container: &Container,
    command: Vec<String>,
    tty: bool,
    streams: &mut Streams,
) -> Result<Outcome> {
    // A container that has ended since the URL was handed out has no process to find a terminal by;
    // `start_exec` below refuses it with the reason.
    let opened = match container.pid().filter(|_| tty) {
        Some(pid) => Opened::terminal(pid).await,
        None => Opened::streams(streams),
    };
    let Opened { stdio, window, theirs } = opened.context("open the command's streams")?;
    let descriptors: Vec<&OwnedFd> = theirs.iter().collect();
    let request = ExecRequest { tty, ..ExecRequest::new(command) };
    let mut execution = container.start_exec(&request, &descriptors).await?;
    // As long as this process has its copies, the readers would wait for the end of the output.
    drop(theirs);
    let (ended, end) = watch::channel(false);
    let mut gone = streams.gone.clone();
    let resize = |width, height| window.iter().for_each(|window| window.resize(width, height));
    let copying = stdio.copy(streams, end, resize);
    let waiting = async {
        let code = tokio::select! {
            code = execution.ended() => Some(code),
            _ = gone.wait_for(|gone| *gone) => None,
        };
        // Nobody would read its output or end it: `kubectl exec` in a closed terminal.
        if code.is_none() {
            execution.kill().await;
        }
        ended.send_replace(true);
        code
    };
    // Both, since output may still be on its way when the process has ended.
    let ((), code) = tokio::join!(copying, waiting);
    match code.transpose()? {
        Some(0) => Ok(Outcome::Success),
        Some(code) => Ok(Outcome::ExitCode(code)),
        None => Ok(Outcome::Failed("the client left".to_owned())),
    }
}

/// Joins a client to the streams of a container's first process until that ends or the client
/// leaves. The process goes on either way.
pub(super) async fn attach(container: &Container, options: StreamOptions, mut streams: Streams) {
    let outcome = match join(container, options, &mut streams).await {
        Ok(()) => Outcome::Success,
        Err(error) => Outcome::Failed(error.message),
    };
    streams.end(&outcome).await;
}

async fn join(container: &Container, options: StreamOptions, streams: &mut Streams) -> Result<()> {
    let asked = [options.stdin, options.stdout, options.stderr];
    let (stdio, theirs) = Stdio::pipes(asked).context("open the client's streams")?;
    let theirs: Vec<OwnedFd> = theirs.into_iter().flatten().collect();
    let descriptors: Vec<&OwnedFd> = theirs.iter().collect();
    let connection = container.attach(asked.into(), &descriptors).await?;
    // The shim has its own now, and the end of the output is when it closes them.
    drop(theirs);
    let (ended, end) = watch::channel(false);
    let mut gone = streams.gone.clone();
    // A watch keeps the last value only: sizes come faster than the shim can apply them, and only
    // the newest one matters.
    let (resizing, mut size) = watch::channel((0, 0));
    let copying = stdio.copy(streams, end, move |width, height| {
        resizing.send_replace((width, height));
    });
    let waiting = async {
        let resizes = async {
            while size.changed().await.is_ok() {
                let (width, height) = *size.borrow_and_update();
                container.resize(width, height).await;
            }
            // The client may close this stream long before it leaves.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = connection.closed() => {}
            _ = gone.wait_for(|gone| *gone) => {}
            () = resizes => {}
        }
        ended.send_replace(true);
    };
    tokio::join!(copying, waiting);
    Ok(())
}

/// The streams of an exec's process.
struct Opened {
    stdio: Stdio,
    window: Option<Window>,
    /// The process' ends: one of a terminal, or three.
    theirs: Vec<OwnedFd>,
}

impl Opened {
    /// A terminal in the container of the process `pid`.
    async fn terminal(pid: u32) -> io::Result<Self> {
        let Terminal { input, output, window, theirs } = Terminal::open(pid).await?;
        // A terminal has one output; CRI forbids to ask for stderr with it.
        let stdio =
            Stdio { stdin: Some(Writer(input)), stdout: Some(Reader(output)), stderr: None };
        Ok(Self { stdio, window: Some(window), theirs: vec![theirs] })
    }

    /// Pipes for what the client asked for, and /dev/null in the place of the others.
    fn streams(streams: &Streams) -> io::Result<Self> {
        let asked = [&streams.stdout, &streams.stderr].map(Option::is_some);
        let (stdio, pipes) = Stdio::pipes([streams.stdin.is_some(), asked[0], asked[1]])?;
        let mut theirs = Vec::new();
        for pipe in pipes {
            theirs.push(match pipe {
                Some(pipe) => pipe,
                None => File::options().read(true).write(true).open("/dev/null")?.into(),
            });
        }
        Ok(Self { stdio, window: None, theirs })
    }
}

/// The daemon's ends of a process' streams.
struct Stdio {
    stdin: Option<Writer>,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
}

impl Stdio {
    /// Pipes for those of stdin, stdout and stderr that are true, and the process' ends of them.
    fn pipes([stdin, stdout, stderr]: [bool; 3]) -> io::Result<(Self, [Option<OwnedFd>; 3])> {
        let (in_read, stdin) = stdin.then(stdio::input).transpose()?.unzip();
        let (stdout, out_write) = stdout.then(stdio::output).transpose()?.unzip();
        let (stderr, err_write) = stderr.then(stdio::output).transpose()?.unzip();
        let own = Self {
            stdin: stdin.map(Writer),
            stdout: stdout.map(Reader),
            stderr: stderr.map(Reader),
        };
        Ok((own, [in_read, out_write, err_write]))
    }

    /// Copies until `ended` is true and the client has all output, or until the client is gone.
    async fn copy(
        self,
        streams: &mut Streams,
        ended: watch::Receiver<bool>,
        mut resize: impl FnMut(u16, u16),
    ) {
        let Streams { stdin, stdout, stderr, resize: sizes, gone, .. } = streams;
        let outputs = async {
            tokio::join!(
                copy_output(self.stdout, stdout.as_ref(), ended.clone()),
                copy_output(self.stderr, stderr.as_ref(), ended.clone()),
            );
            // A process may close its outputs long before it ends, and a client may have asked for
            // none of them.
            let _ = ended.clone().wait_for(|ended| *ended).await;
        };
        let inputs = async {
            let copy_stdin = async {
                if let (Some(writer), Some(input)) = (self.stdin, stdin) {
                    writer.copy_from(input).await;
                }
            };
            let read_sizes = async {
                if let Some(sizes) = sizes {
                    read_sizes(sizes, &mut resize).await;
                }
            };
            tokio::join!(copy_stdin, read_sizes);
            // The end of the client's input is not the end of the session.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = outputs => {}
            () = inputs => {}
            _ = gone.wait_for(|gone| *gone) => {}
        }
    }
}

async fn copy_output(from: Option<Reader>, to: Option<&Output>, ended: watch::Receiver<bool>) {
    if let (Some(from), Some(to)) = (from, to) {
        // It fails for a client that is gone, which the session notices by itself.
        let _ = from.copy_to(to, ended).await;
    }
}

/// `remotecommand.TerminalSize` of client-go.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Calls `resize` with each size that the client sends: JSON objects one after the other, without
/// regard to where messages begin.
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
        // What is left is the beginning of an object, or not an object at all.
        text.drain(..taken);
        if text.len() > MAX_RESIZE {
            return;
        }
    }
}
