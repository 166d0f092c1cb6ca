//! Pipes and terminals of processes, read and written without blocking.

use std::{io, os::fd::OwnedFd};

use berth_base::blocking::spawn_blocking;
use berth_node::container::drain::{CAPACITY, Drain};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    pipe::{PipeFlags, pipe_with},
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{net::unix::pipe, sync::watch};

use super::{
    packet::Packet,
    streams::{Input, Output},
};

/// The most that one read takes from a pipe, in bytes.
const CHUNK: usize = 64 << 10;
/// The magic number of devpts (statfs(2)).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// The output of a process.
#[derive(Debug)]
pub(crate) struct Reader(pipe::Receiver);

/// The input of a process, which reads its end when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer(pipe::Sender);

/// The size of a process' terminal.
#[derive(Debug)]
pub(crate) struct Window(OwnedFd);

/// A pipe for input: the process' end and the daemon's.
pub(crate) fn input() -> io::Result<(OwnedFd, Writer)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read, Writer::new(write)?))
}

/// A pipe for output: the daemon's end and the process'.
pub(crate) fn output() -> io::Result<(Reader, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A larger pipe needs fewer switches between the process and the daemon. Where there is a limit
    // on that (pipe(7)), the pipe stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, CAPACITY);
    Ok((Reader::new(read)?, write))
}

/// A terminal: the daemon's ends of it, and the process'.
///
/// It is taken from the /dev/pts of the container, by the root directory of the process `pid`, so
/// that programs find its name there (ttyname(3)). If the container has no usable /dev/pts, it is a
/// terminal of the host.
pub(crate) async fn terminal(pid: u32) -> io::Result<(Writer, Reader, Window, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // In a thread: the container may have mounted a filesystem there that never answers.
    let master = match spawn_blocking(move || open_inside(pid)).await? {
        Ok(master) => master,
        Err(error) => {
            tracing::debug!("no terminal of the container's own: {error}");
            rustix::pty::openpt(flags)?
        }
    };
    // Not by its path, which the container could have replaced: TIOCGPTPEER opens the other end of
    // this very terminal (ioctl_tty(2)).
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let writer = Writer::new(master.try_clone()?)?;
    let reader = Reader::new(master.try_clone()?)?;
    Ok((writer, reader, Window(master), slave))
}

/// Opens /dev/pts/ptmx of a container, which may have put anything in its place: no link is
/// followed, and the file has to be on a devpts.
fn open_inside(pid: u32) -> io::Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), directory, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let pts = rustix::fs::openat2(&root, "dev/pts", directory, Mode::empty(), resolve)?;
    if rustix::fs::fstatfs(&pts)?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("/dev/pts is not a devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Not on another filesystem, which could be mounted over the file.
    let within = resolve | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), within)?)
}

impl Window {
    pub(crate) fn resize(&self, width: u16, height: u16) {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // It fails only after the process has ended, and nobody looks at the size then.
        let _ = tcsetwinsize(&self.0, size);
    }
}

impl Reader {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Copies to a client until the end of the stream, or, once `ended`, what is in the pipe.
    ///
    /// # Errors
    /// The client is gone, or the pipe cannot be read.
    pub(crate) async fn copy_to(
        &self,
        output: &Output,
        ended: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut packet = Packet::with_room(CHUNK);
        let mut drain = Drain::new(&self.0, ended);
        while let length @ 1.. = drain.read(packet.room()).await? {
            output.send(packet.filled(length)).await?;
        }
        Ok(())
    }
}

impl Writer {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(pipe::Sender::from_owned_fd_unchecked(fd)?))
    }

    /// Copies from a client until that has no more to send, or the process has closed its end.
    pub(crate) async fn copy_from(self, input: &mut Input) {
        while let Some(bytes) = input.recv().await {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match self.0.try_write(rest) {
                    Ok(length) => rest = &rest[length..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // Not to read more from the client meanwhile is what slows it down.
                        if self.0.writable().await.is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
