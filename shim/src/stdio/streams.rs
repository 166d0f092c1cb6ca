//! The container's standard streams, on the side of the monitor: output goes to the log
//! and to attached clients, input comes from the client that attached last.
//!
//! Nothing here blocks, since one loop serves everything. A client that does not read loses its own
//! copy of the output; the container waits only for the log's disk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_shim::spec;
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
        log::{Lines, Log, Stream, now, rfc3339},
    },
};

/// What a poll on behalf of the streams waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interest {
    /// Output of the container, by its index.
    Output(usize),
    /// Input of the attached client.
    AttachedStdin,
    /// Room for input in the container's pipe.
    ContainerStdin,
}

/// The most that one read takes, in bytes.
const CHUNK: usize = 32 * 1024;

/// The container's streams and its log.
pub(crate) struct Streams {
    log: Log,
    outputs: Vec<Output>,
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
    sinks: Vec<OwnedFd>,
}

impl Streams {
    /// Opens the log. The streams themselves come by `add_pipes` or `add_terminal`.
    pub(crate) fn open(spec: &spec::Stdio) -> Result<Self> {
        Ok(Self {
            log: Log::open(spec.log.as_deref(), spec.log_directory.as_deref())?,
            outputs: Vec::new(),
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

    /// What to wait for. While there is input that the container has not taken, no more is read
    /// from the client: it is held up instead of filling the memory.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (Interest, BorrowedFd<'_>, PollFlags)> {
        let outputs = self.outputs.iter().enumerate().map(|(index, output)| {
            (Interest::Output(index), output.source.as_fd(), PollFlags::POLLIN)
        });
        let full = !self.pending.is_empty();
        let client = self.attached_stdin.iter().filter(move |_| !full);
        let container = self.stdin.iter().filter(move |_| full);
        outputs
            .chain(client.map(|fd| (Interest::AttachedStdin, fd.as_fd(), PollFlags::POLLIN)))
            .chain(container.map(|fd| (Interest::ContainerStdin, fd.as_fd(), PollFlags::POLLOUT)))
    }

    /// Does what `interest` became ready for.
    pub(crate) fn serve(&mut self, interest: Interest) {
        match interest {
            Interest::Output(index) => self.copy_output(index),
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

    /// Copies everything that is in the pipes now, and ends the last line. The writers are dead, or
    /// have been handed to other processes: those must not delay the container's end.
    pub(crate) fn drain(&mut self) {
        for index in 0..self.outputs.len() {
            while self.copy_chunk(index).is_some_and(|length| length > 0) {}
        }
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
            output.sinks.retain(|sink| takes(sink, &buffer[..length]));
        }
        self.log.write(&records);
        Some(length)
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
                output.sinks.push(sink);
            }
        }
        if let Some(stdin) = stdin {
            set_nonblocking(&stdin)?;
            self.attached_stdin = Some(stdin);
        }
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

/// Writes to an attached client, and returns whether it is still there. One that does not keep up
/// (EAGAIN) loses these bytes.
fn takes(sink: &OwnedFd, bytes: &[u8]) -> bool {
    !matches!(rustix::io::write(sink, bytes), Err(errno) if errno != Errno::AGAIN)
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).step("pipe")
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).step("fcntl")?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).step("fcntl")
}
