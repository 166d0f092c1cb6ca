//! The container's standard streams, on the side of the monitor: output goes to the log
//! and to attached clients, input comes from the client that attached last.
//!
//! Nothing here blocks, since one loop serves everything. A client that does not read loses its own
//! copy of the output, and the container waits only for the log's disk. With `Stdio::lossless`, as
//! Docker has it, output is read no faster than clients take it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use berth_shim::{spec, timestamp::rfc3339};
use nix::poll::PollFlags;
use rustix::{
    fs::OFlags,
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    error::{Result, Step},
    stdio::{
        child::{ChildStdio, null},
        log::{Lines, Log, Stream, now},
    },
};

/// What a poll on behalf of the streams waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interest {
    /// Output of the container, by its index.
    Output(usize),
    /// Room for more of that output in the pipe of a client.
    Clients(usize),
    /// Input of the attached client.
    AttachedStdin,
    /// Room for input in the container's pipe.
    ContainerStdin,
}

/// The most that one read takes, in bytes.
const CHUNK: usize = 32 * 1024;
/// How long output waits for the first client (`Stdio::awaits_attach`).
const AWAIT_ATTACH: Duration = Duration::from_secs(10);

/// The container's streams and its log.
pub(crate) struct Streams {
    log: Log,
    outputs: Vec<Output>,
    awaits_attach: bool,
    /// Until when no output is read, because no client has attached yet.
    held_until: Option<Instant>,
    lossless: bool,
    /// Whether the container gets a standard input that stays open, instead of /dev/null.
    wants_stdin: bool,
    /// Where the container's input is written; absent if it has none, or none any more.
    stdin: Option<OwnedFd>,
    /// Whether that is closed when the first client that brought input is gone.
    stdin_once: bool,
    /// Where the input of the client comes from that attached last.
    attached_stdin: Option<OwnedFd>,
    /// Input that the container has not taken yet.
    pending: Vec<u8>,
}

/// One stream of output.
struct Output {
    stream: Stream,
    source: OwnedFd,
    lines: Lines,
    /// Attached clients.
    sinks: Vec<Sink>,
}

/// An attached client, which takes output.
struct Sink {
    pipe: OwnedFd,
    /// What it has not taken yet, of a stream that loses nothing.
    pending: Vec<u8>,
}

impl Streams {
    /// Opens the log. The streams themselves come by `add_pipes` or `add_terminal`.
    pub(crate) fn open(spec: &spec::Stdio) -> Result<Self> {
        Ok(Self {
            log: Log::open(spec)?,
            outputs: Vec::new(),
            awaits_attach: spec.awaits_attach,
            held_until: None,
            lossless: spec.lossless,
            wants_stdin: spec.stdin,
            stdin: None,
            stdin_once: spec.stdin_once,
            attached_stdin: None,
            pending: Vec::new(),
        })
    }

    /// Makes pipes, and returns the container's ends of them.
    pub(crate) fn add_pipes(&mut self) -> Result<ChildStdio> {
        let stdout = self.add_output(Stream::Stdout)?;
        let stderr = self.add_output(Stream::Stderr)?;
        let stdin = if self.wants_stdin {
            let (read, write) = pipe()?;
            set_nonblocking(&write)?;
            self.stdin = Some(write);
            read
        } else {
            null()?
        };
        Ok(ChildStdio::Pipes { stdin, stdout, stderr })
    }

    fn add_output(&mut self, stream: Stream) -> Result<OwnedFd> {
        let (read, write) = pipe()?;
        // Only this side: the mode belongs to the end of a pipe, and programs expect to block.
        set_nonblocking(&read)?;
        self.outputs.push(Output {
            stream,
            source: read,
            lines: Lines::new(stream),
            sinks: Vec::new(),
        });
        Ok(write)
    }

    /// Takes the master end of the container's terminal, for both directions. A terminal does not
    /// tell stderr from stdout: all is logged as stdout.
    pub(crate) fn add_terminal(&mut self, master: OwnedFd) -> Result<()> {
        set_nonblocking(&master)?;
        self.stdin = Some(master.try_clone().step("duplicate the terminal")?);
        let stream = Stream::Stdout;
        self.outputs.push(Output {
            stream,
            source: master,
            lines: Lines::new(stream),
            sinks: Vec::new(),
        });
        Ok(())
    }

    /// To be called when the program has started, from when on a client can attach.
    pub(crate) fn begin(&mut self) {
        self.held_until = self.awaits_attach.then(|| Instant::now() + AWAIT_ATTACH);
    }

    /// How long output may still wait for the first client. None once it does not.
    pub(crate) fn hold(&mut self) -> Option<Duration> {
        let left = self.held_until?.checked_duration_since(Instant::now());
        if left.is_none() {
            self.held_until = None;
        }
        left
    }

    /// What to wait for. While there is input that the container has not taken, no more is read
    /// from the client, and with `lossless` no more output while a client has not taken all: who is
    /// faster is held up instead of filling the memory.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (Interest, BorrowedFd<'_>, PollFlags)> {
        let all = self.outputs.iter().enumerate();
        let readable = all.clone().filter(|(_, output)| self.is_read(output));
        let outputs = readable.map(|(index, output)| {
            (Interest::Output(index), output.source.as_fd(), PollFlags::POLLIN)
        });
        let behind = all.flat_map(|(index, output)| {
            let sinks = output.sinks.iter().filter(|sink| !sink.pending.is_empty());
            sinks.map(move |sink| (Interest::Clients(index), sink.pipe.as_fd(), PollFlags::POLLOUT))
        });
        let full = !self.pending.is_empty();
        let client = self.attached_stdin.iter().filter(move |_| !full);
        let container = self.stdin.iter().filter(move |_| full);
        outputs
            .chain(behind)
            .chain(client.map(|fd| (Interest::AttachedStdin, fd.as_fd(), PollFlags::POLLIN)))
            .chain(container.map(|fd| (Interest::ContainerStdin, fd.as_fd(), PollFlags::POLLOUT)))
    }

    /// Does what `interest` became ready for.
    pub(crate) fn serve(&mut self, interest: Interest) {
        match interest {
            Interest::Output(index) => self.copy_output(index),
            Interest::Clients(index) => self.feed_clients(index),
            Interest::AttachedStdin => self.read_attached(),
            Interest::ContainerStdin => self.feed_container(),
        }
    }

    /// Copies one chunk of an output. An output that has ended is removed, which changes the index
    /// of those behind it.
    fn copy_output(&mut self, index: usize) {
        if self.copy_chunk(index) == Some(0) {
            self.outputs.remove(index);
        }
    }

    /// Whether output is read now.
    fn is_read(&self, output: &Output) -> bool {
        self.held_until.is_none() && output.sinks.iter().all(|sink| sink.pending.is_empty())
    }

    /// Copies everything that is in the pipes now, as far as clients take it. The writers are dead,
    /// or have been handed to other processes: those must not delay the container's end.
    ///
    /// Returns whether something has to wait for a client.
    pub(crate) fn drain(&mut self) -> bool {
        for index in 0..self.outputs.len() {
            while self.outputs.get(index).is_some_and(|output| self.is_read(output))
                && self.copy_chunk(index).is_some_and(|length| length > 0)
            {}
        }
        !self.outputs.iter().all(|output| self.is_read(output))
    }

    /// Waits for no client any more. They get no more than they have.
    pub(crate) fn abandon_clients(&mut self) {
        self.held_until = None;
        self.outputs.iter_mut().for_each(|output| output.sinks.clear());
    }

    /// Ends the last line of each output.
    pub(crate) fn finish(&mut self) {
        let (time, mut records) = (rfc3339(now()), Vec::new());
        for output in &mut self.outputs {
            output.lines.finish(&time, &mut records);
        }
        self.log.write(&records);
    }

    /// Copies one chunk, and returns its length: `Some(0)` at the end of the stream, `None` if
    /// there is nothing now.
    fn copy_chunk(&mut self, index: usize) -> Option<usize> {
        let output = self.outputs.get_mut(index)?;
        // On the stack: nothing is kept between two chunks.
        let mut buffer = [0; CHUNK];
        let mut records = Vec::new();
        let length = match rustix::io::read(&output.source, &mut buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            // EIO from a terminal: the last slave end was closed.
            Err(_) => 0,
        };
        let time = rfc3339(now());
        if length == 0 {
            output.lines.finish(&time, &mut records);
        } else {
            output.lines.push(&buffer[..length], &time, &mut records);
            let lossless = self.lossless;
            output.sinks.retain_mut(|sink| sink.take(&buffer[..length], lossless));
        }
        self.log.write(&records);
        Some(length)
    }

    /// Writes what clients have not taken yet.
    fn feed_clients(&mut self, index: usize) {
        if let Some(output) = self.outputs.get_mut(index) {
            output.sinks.retain_mut(Sink::feed);
        }
    }

    /// Takes the descriptors of a client that attaches.
    pub(crate) fn attach(
        &mut self,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<()> {
        for (stream, sink) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let Some(sink) = sink else { continue };
            set_nonblocking(&sink)?;
            if let Some(output) = self.outputs.iter_mut().find(|output| output.stream == stream) {
                output.sinks.push(Sink { pipe: sink, pending: Vec::new() });
            }
        }
        if let Some(stdin) = stdin {
            set_nonblocking(&stdin)?;
            self.attached_stdin = Some(stdin);
        }
        self.held_until = None;
        Ok(())
    }

    /// Reads one chunk of the client's input.
    fn read_attached(&mut self) {
        let Some(client) = &self.attached_stdin else { return };
        let mut buffer = [0; 4096];
        match rustix::io::read(client, &mut buffer) {
            Ok(length) if length > 0 => {
                self.pending.extend_from_slice(&buffer[..length]);
                self.feed_container();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.attached_stdin = None;
                if self.stdin_once {
                    self.close_stdin();
                }
            }
        }
    }

    /// Writes as much input as the container takes.
    fn feed_container(&mut self) {
        let Some(stdin) = &self.stdin else { return self.pending.clear() };
        match rustix::io::write(stdin, &self.pending) {
            Ok(taken) => drop(self.pending.drain(..taken)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EPIPE: the container has closed its end.
            Err(_) => self.close_stdin(),
        }
    }

    /// The container reads end-of-file from now on.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
        self.pending.clear();
    }

    /// Sets the size of the terminal, in characters. Without one this does nothing.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(terminal) = &self.stdin else { return Ok(()) };
        let size =
            rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).step("resize the terminal")
    }

    /// Goes on in a new log file, after the old one was renamed.
    pub(crate) fn reopen_log(&mut self) -> Result<()> {
        self.log.reopen()
    }
}

impl Sink {
    /// Writes to the client, and returns whether it is still there. One that does not keep up
    /// (EAGAIN) loses these bytes, unless nothing may be lost.
    fn take(&mut self, bytes: &[u8], lossless: bool) -> bool {
        let taken = match rustix::io::write(&self.pipe, bytes) {
            Ok(taken) => taken,
            Err(Errno::AGAIN) => 0,
            Err(_) => return false,
        };
        if lossless {
            self.pending.extend_from_slice(&bytes[taken..]);
        }
        true
    }

    /// Writes what the client has not taken yet, and returns whether it is still there.
    fn feed(&mut self) -> bool {
        let pending = std::mem::take(&mut self.pending);
        pending.is_empty() || self.take(&pending, true)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).step("pipe")
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).step("fcntl")?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).step("fcntl")
}
