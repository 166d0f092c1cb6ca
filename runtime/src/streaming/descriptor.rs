//! Pipes and terminals of processes, read and written without blocking.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    pipe::{PipeFlags, pipe_with},
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{net::unix::pipe, sync::watch};

use super::{
    channels::{Input, Output},
    spdy::HEADER,
};

/// Of one read, and of a pipe.
const CHUNK: usize = 64 << 10;
const PIPE: usize = 1 << 20;
/// statfs(2)
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// What a process says.
#[derive(Debug)]
pub(crate) struct Reader(pipe::Receiver);

/// What a process hears. Dropped, it reads the end of it.
#[derive(Debug)]
pub(crate) struct Writer(pipe::Sender);

/// A process' window.
#[derive(Debug)]
pub(crate) struct Window(OwnedFd);

/// A pipe: the process' end for reading, and ours.
pub(crate) fn input() -> io::Result<(OwnedFd, Writer)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read, Writer::new(write)?))
}

/// A pipe: ours for reading, and the process' end.
pub(crate) fn output() -> io::Result<(Reader, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // More for each turn; a limit on pipes is no reason to fail.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((Reader::new(read)?, write))
}

/// A terminal: what is ours, and what the process gets. It is one of the container's own /dev/pts, by the root directory of `pid`, so
/// that programs in it find its name; where that is not what it should be, one of the host's.
pub(crate) async fn terminal(pid: u32) -> io::Result<(Writer, Reader, Window, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // A filesystem that the container made may not answer.
    let master = match tokio::task::spawn_blocking(move || open_inside(pid)).await? {
        Ok(master) => master,
        Err(error) => {
            tracing::debug!("no terminal of the container's own: {error}");
            rustix::pty::openpt(flags)?
        }
    };
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    let (writer, reader) = (Writer::new(master.try_clone()?)?, Reader::new(master.try_clone()?)?);
    Ok((writer, reader, Window(master), slave))
}

/// What a container has at /dev/pts/ptmx is its own doing: no link is followed, and it must be that file of a devpts.
fn open_inside(pid: u32) -> io::Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), directory, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let pts = rustix::fs::openat2(&root, "dev/pts", directory, Mode::empty(), resolve)?;
    if rustix::fs::fstatfs(&pts)?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("/dev/pts is not a devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let within = resolve | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), within)?)
}

impl Window {
    pub(crate) fn resize(&self, width: u16, height: u16) {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // Gone with its process.
        let _ = tcsetwinsize(&self.0, size);
    }
}

impl Reader {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Copies to a client until the end of the stream, or, once `ended`, what is there: a daemonised child may hold it for ever.
    ///
    /// # Errors
    /// The client is gone.
    pub(crate) async fn copy_to(&self, output: &Output, mut ended: watch::Receiver<bool>) -> io::Result<()> {
        let mut buffer = vec![0; HEADER + CHUNK];
        // What a child that lives on goes on saying has an end too.
        let mut left = 4 * PIPE;
        loop {
            let is_last = *ended.borrow();
            // Not by the event loop's word, which may not have heard of the last of it.
            match rustix::io::read(self.0.as_fd(), &mut buffer[HEADER..]) {
                Ok(length) if length > 0 && left > 0 => {
                    left = if is_last { left.saturating_sub(length) } else { left };
                    output.send(&mut buffer[..HEADER + length]).await?;
                }
                Err(errno) if errno == rustix::io::Errno::AGAIN && !is_last => {
                    tokio::select! {
                        ready = self.0.readable() => ready?,
                        _ = ended.wait_for(|ended| *ended) => {}
                    }
                    // Tells the event loop that there was nothing.
                    if let Ok(length @ 1..) = self.0.try_read(&mut buffer[HEADER..]) {
                        output.send(&mut buffer[..HEADER + length]).await?;
                    }
                }
                // The end; EIO is that of a terminal.
                _ => return Ok(()),
            }
        }
    }
}

impl Writer {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self(pipe::Sender::from_owned_fd_unchecked(fd)?))
    }

    /// Copies from a client until it has no more, or nobody reads it.
    pub(crate) async fn copy_from(self, input: &mut Input) {
        while let Some(bytes) = input.recv().await {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match self.0.try_write(rest) {
                    Ok(length) => rest = &rest[length..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.0.writable().await {
                        Ok(()) => {}
                        Err(_) => return,
                    },
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
