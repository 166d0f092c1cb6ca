//! Reads what a process writes, until its end.

use std::io;

use rustix::io::Errno;
use tokio::{net::unix::pipe, sync::watch, task::coop};

/// The size of a large pipe, in bytes: the most that an unprivileged user may ask for
/// (`/proc/sys/fs/pipe-max-size`, pipe(7)).
pub const CAPACITY: usize = 1 << 20;

/// The output of a process, in a pipe or a terminal that does not block.
///
/// A pipe ends when the last process that has it closes it, which need not be the one that is
/// waited for: a daemonised child can hold it for ever. So once that process has ended, what is in
/// the pipe is all that counts.
#[derive(Debug)]
pub struct Drain<'a> {
    pipe: &'a pipe::Receiver,
    /// True once the process has ended.
    ended: watch::Receiver<bool>,
    /// How many more bytes are read after that: a child that goes on writing has no end.
    left: usize,
}

impl<'a> Drain<'a> {
    pub fn new(pipe: &'a pipe::Receiver, ended: watch::Receiver<bool>) -> Self {
        Self { pipe, ended, left: 4 * CAPACITY }
    }

    /// Reads into `buffer`, which is not empty, and returns how many bytes; 0 is the end.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // A process that writes without a pause must not keep a thread from its other tasks:
            // reads that succeed at once never wait.
            coop::consume_budget().await;
            let ended = *self.ended.borrow();
            if ended && self.left == 0 {
                return Ok(0);
            }
            // The pipe is asked itself, and not the event loop: that may not have heard yet of what
            // a process wrote right before it ended.
            match rustix::io::read(self.pipe, &mut *buffer) {
                Ok(length) => {
                    if ended {
                        self.left = self.left.saturating_sub(length);
                    }
                    return Ok(length);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if ended => return Ok(0),
                Err(Errno::AGAIN) => {
                    tokio::select! {
                        ready = self.pipe.readable() => ready?,
                        _ = self.ended.wait_for(|ended| *ended) => {}
                    }
                    // A read by the event loop clears its note that the pipe is readable. Without
                    // that `readable` would return at once from then on.
                    if let Ok(length @ 1..) = self.pipe.try_read(buffer) {
                        return Ok(length);
                    }
                }
                // The other end of a terminal is closed (ioctl_tty(2), `tty_io.c` in the kernel).
                Err(Errno::IO) => return Ok(0),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::OwnedFd};

    use super::*;

    fn pair() -> (pipe::Receiver, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).unwrap(), writer)
    }

    async fn read_all(pipe: &pipe::Receiver, ended: bool) -> usize {
        // The sender is kept: a process that has not ended yet.
        let (_sender, ended) = watch::channel(ended);
        let mut drain = Drain::new(pipe, ended);
        let mut buffer = vec![0; 4096];
        let mut total = 0;
        while let length @ 1.. = drain.read(&mut buffer).await.unwrap() {
            total += length;
        }
        total
    }

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end() {
        let (pipe, mut writer) = pair();
        let writing = tokio::task::spawn_blocking(move || writer.write_all(&[1; 300_000]));
        assert_eq!(read_all(&pipe, false).await, 300_000);
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_pipe_that_is_held_open_ends_with_its_process() {
        let (pipe, mut writer) = pair();
        writer.write_all(b"last words").unwrap();
        assert_eq!(read_all(&pipe, true).await, 10);
        drop(writer);
    }

    #[tokio::test]
    async fn a_child_that_writes_for_ever_does_not_keep_the_pipe_open() {
        let (pipe, mut writer) = pair();
        let writing =
            tokio::task::spawn_blocking(move || while writer.write(&[1; 4096]).is_ok() {});
        let total = read_all(&pipe, true).await;
        assert!(total <= 4 * CAPACITY + 4096, "{total}");
        drop(pipe);
        writing.await.unwrap();
    }
}
