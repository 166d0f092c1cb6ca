//! The daemon's ends of a process' streams, copied from and to the streams of a client.

use std::io;

use berth_node::container::drain::Drain;
use tokio::{net::unix::pipe, sync::watch};

use super::{
    packet::Packet,
    streams::{Input, Output},
};

/// The most that one read takes from a pipe, in bytes.
const CHUNK: usize = 64 << 10;

/// The output of a process.
#[derive(Debug)]
pub(crate) struct Reader(pub pipe::Receiver);

/// The input of a process, which reads its end when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer(pub pipe::Sender);

impl Reader {
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
