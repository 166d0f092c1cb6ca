//! Bytes that one thread writes and somebody else takes in pieces.

use std::io::{self, Write};

/// Gathers what is written, and hands it on in chunks of `size` bytes, the last of which may be
/// shorter: that one goes with `flush`.
#[derive(Debug)]
pub struct ChunkWriter<S> {
    size: usize,
    chunk: Vec<u8>,
    send: S,
}

impl<S: FnMut(Vec<u8>) -> io::Result<()>> ChunkWriter<S> {
    /// `send` may block; what it fails with is the error of the write.
    pub fn new(size: usize, send: S) -> Self {
        Self { size, chunk: Vec::new(), send }
    }
}

impl<S: FnMut(Vec<u8>) -> io::Result<()>> Write for ChunkWriter<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(self.size);
        }
        let taken = bytes.len().min(self.size - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == self.size {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.chunk.is_empty() {
            true => Ok(()),
            false => (self.send)(std::mem::take(&mut self.chunk)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_in_chunks() {
        let mut chunks = Vec::new();
        let mut writer = ChunkWriter::new(4, |chunk| {
            chunks.push(String::from_utf8(chunk).unwrap());
            Ok(())
        });
        for text in ["ab", "cdefghi", "", "j"] {
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        writer.flush().unwrap();
        assert_eq!(chunks, ["abcd", "efgh", "ij"]);
    }

    #[test]
    fn a_writer_hears_that_nobody_takes_its_chunks() {
        let mut writer = ChunkWriter::new(2, |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert!(writer.write_all(b"a").is_ok());
        assert_eq!(writer.write_all(b"b").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
