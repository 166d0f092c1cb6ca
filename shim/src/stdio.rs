//! The container's standard streams: output goes to the log and to whoever attached, input comes from who attached.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use berth_shim::spec;
use nix::poll::PollFlags;
use rustix::{
    fs::{FileType, Gid, OFlags, Uid},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    error::{Result, Step},
    log::{Lines, Log, Stream, now, rfc3339},
    monitor::Source,
};

const CHUNK: usize = 32 * 1024;

/// What the first process gets.
pub(crate) enum ChildStdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// It makes a pty itself, in its own devpts, and sends the master end.
    Terminal,
}

impl ChildStdio {
    /// So that root of a user namespace owns its streams, and can hand them on. A /dev/null stays who it is.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) {
        if let Self::Pipes { stdin, stdout, stderr } = self {
            give(&[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], uid, gid);
        }
    }
}

/// Changes the owner of those that are pipes: /dev/null, or whatever else a daemon passed in, is not ours to give away.
pub(crate) fn give(fds: &[BorrowedFd<'_>], uid: u32, gid: u32) {
    for fd in fds {
        if rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo()) {
            // In a user namespace the id may have no mapping: then the program does without.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

pub(crate) struct Stdio {
    log: Log,
    outputs: Vec<Output>,
    /// The container's end of input; absent when it has none, or none any more.
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    /// Input of who attached last, and what of it the container has not taken yet.
    attached_stdin: Option<OwnedFd>,
    pending: Vec<u8>,
}

struct Output {
    stream: Stream,
    source: OwnedFd,
    lines: Lines,
    sinks: Vec<OwnedFd>,
}

impl Stdio {
    /// Opens the log and makes the pipes; with a terminal those come later, by `terminal`.
    pub(crate) fn open(spec: &spec::Stdio, tty: bool) -> Result<(Self, ChildStdio)> {
        let log = Log::open(spec.log.as_deref())?;
        let mut stdio = Self {
            log,
            outputs: Vec::new(),
            stdin: None,
            stdin_once: spec.stdin_once,
            attached_stdin: None,
            pending: Vec::new(),
        };
        if tty {
            return Ok((stdio, ChildStdio::Terminal));
        }
        let stdout = stdio.add_output(Stream::Stdout)?;
        let stderr = stdio.add_output(Stream::Stderr)?;
        let stdin = if spec.stdin {
            let (read, write) = pipe()?;
            set_nonblocking(&write)?;
            stdio.stdin = Some(write);
            read
        } else {
            null()?
        };
        Ok((stdio, ChildStdio::Pipes { stdin, stdout, stderr }))
    }

    fn add_output(&mut self, stream: Stream) -> Result<OwnedFd> {
        let (read, write) = pipe()?;
        set_nonblocking(&read)?;
        self.outputs.push(Output { stream, source: read, lines: Lines::new(stream), sinks: Vec::new() });
        Ok(write)
    }

    /// The master end of the container's terminal: both directions, all logged as stdout.
    pub(crate) fn terminal(&mut self, master: OwnedFd) -> Result<()> {
        set_nonblocking(&master)?;
        self.stdin = Some(master.try_clone().step("duplicate the terminal")?);
        let stream = Stream::Stdout;
        self.outputs.push(Output { stream, source: master, lines: Lines::new(stream), sinks: Vec::new() });
        Ok(())
    }

    /// What to wait for.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let outputs = self
            .outputs
            .iter()
            .enumerate()
            .map(|(index, output)| (Source::Output(index), output.source.as_fd(), PollFlags::POLLIN));
        let full = !self.pending.is_empty();
        let client = self.attached_stdin.iter().filter(move |_| !full);
        let container = self.stdin.iter().filter(move |_| full);
        outputs
            .chain(client.map(|fd| (Source::AttachedStdin, fd.as_fd(), PollFlags::POLLIN)))
            .chain(container.map(|fd| (Source::ContainerStdin, fd.as_fd(), PollFlags::POLLOUT)))
    }

    /// Copies one chunk of an output. An output that ended is forgotten.
    pub(crate) fn copy_output(&mut self, index: usize) {
        if self.copy_chunk(index) == Some(0) {
            self.outputs.remove(index);
        }
    }

    /// Everything that is in the pipes now. The writers are dead, or daemonised: those cannot hold the exit up.
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

    /// How much was read: `Some(0)` at the end of the stream, `None` when there is nothing now.
    fn copy_chunk(&mut self, index: usize) -> Option<usize> {
        let output = self.outputs.get_mut(index)?;
        let mut buffer = [0; CHUNK];
        let mut records = Vec::new();
        let length = match rustix::io::read(&output.source, &mut buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            // EIO: the last slave end of a terminal was closed.
            Err(_) => 0,
        };
        let time = rfc3339(now());
        if length == 0 {
            output.lines.finish(&time, &mut records);
        } else {
            output.lines.push(&buffer[..length], &time, &mut records);
            // A client that does not keep up loses its own copy, and only that.
            output.sinks.retain(
                |sink| !matches!(rustix::io::write(sink, &buffer[..length]), Err(errno) if errno != Errno::AGAIN),
            );
        }
        self.log.write(&records);
        Some(length)
    }

    /// Takes the descriptors of a client, in the order stdin, stdout, stderr.
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

    /// Reads from the client, up to the chunk that the container has to take first.
    pub(crate) fn read_attached(&mut self) {
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

    pub(crate) fn feed_container(&mut self) {
        let Some(stdin) = &self.stdin else { return self.pending.clear() };
        match rustix::io::write(stdin, &self.pending) {
            Ok(taken) => drop(self.pending.drain(..taken)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close_stdin(),
        }
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
        self.pending.clear();
    }

    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(terminal) = &self.stdin else { return Ok(()) };
        let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).step("resize the terminal")
    }

    pub(crate) fn reopen_log(&mut self) -> Result<()> {
        self.log.reopen()
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).step("pipe")
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).step("fcntl")?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).step("fcntl")
}

fn null() -> Result<OwnedFd> {
    OpenOptions::new().read(true).open("/dev/null").map(OwnedFd::from).step_on("open", "/dev/null")
}

/// A pause has no streams of its own.
pub(crate) fn discard() -> Result<ChildStdio> {
    let write = || {
        OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map(|file: File| OwnedFd::from(file))
            .step_on("open", "/dev/null")
    };
    // Flushed here so that nothing buffered is written twice after the fork.
    std::io::stdout().flush().step("flush")?;
    Ok(ChildStdio::Pipes { stdin: null()?, stdout: write()?, stderr: write()? })
}
