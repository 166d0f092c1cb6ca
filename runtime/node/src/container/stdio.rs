//! Pipes and terminals for the processes of containers, as either edge opens them. The daemon's
//! ends never block.

use std::{io, os::fd::OwnedFd};

use berth_base::blocking::spawn_blocking;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    pipe::{PipeFlags, pipe_with},
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::net::unix::pipe;

use super::drain::CAPACITY;

/// The magic number of devpts (statfs(2)).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// A terminal for one process: the daemon's ends of it, and the process'.
#[derive(Debug)]
pub struct Terminal {
    pub input: pipe::Sender,
    pub output: pipe::Receiver,
    pub window: Window,
    pub theirs: OwnedFd,
}

/// The size of a process' terminal.
#[derive(Debug)]
pub struct Window(OwnedFd);

/// A pipe for input: the process' end and the daemon's.
///
/// # Errors
/// Those of pipe(2).
pub fn input() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read, sender(write)?))
}

/// A pipe for output: the daemon's end and the process'.
///
/// # Errors
/// Those of pipe(2).
pub fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A larger pipe needs fewer switches between the process and the daemon. Where there is a limit
    // on that (pipe(7)), the pipe stays as it is.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, CAPACITY);
    Ok((receiver(read)?, write))
}

impl Terminal {
    /// Opens a terminal in the container of the process `pid`.
    ///
    /// It is taken from the /dev/pts of the container, by the root directory of that process, so
    /// that programs find its name there (ttyname(3)). If the container has no usable /dev/pts, it
    /// is a terminal of the host.
    ///
    /// # Errors
    /// There are no terminals left.
    pub async fn open(pid: u32) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // In a thread: the container may have mounted a filesystem there that never answers.
        let master = match spawn_blocking(move || open_inside(pid)).await? {
            Ok(master) => master,
            Err(error) => {
                tracing::debug!("no terminal of the container's own: {error}");
                rustix::pty::openpt(flags)?
            }
        };
        // Not by its path, which the container could have replaced: TIOCGPTPEER opens the other end
        // of this very terminal (ioctl_tty(2)).
        rustix::pty::unlockpt(&master)?;
        Ok(Self {
            theirs: rustix::pty::ioctl_tiocgptpeer(&master, flags)?,
            input: sender(master.try_clone()?)?,
            output: receiver(master.try_clone()?)?,
            window: Window(master),
        })
    }
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
    pub fn resize(&self, width: u16, height: u16) {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // It fails only after the process has ended, and nobody looks at the size then.
        let _ = tcsetwinsize(&self.0, size);
    }
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    set_nonblocking(&fd)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

fn sender(fd: OwnedFd) -> io::Result<pipe::Sender> {
    set_nonblocking(&fd)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
