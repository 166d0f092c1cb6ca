//! The frames in which output of a container without a terminal reaches a client, so that it can
//! tell the streams apart: `application/vnd.docker.multiplexed-stream`, also called stdcopy.
//!
//! ```text
//! 0        1   2   3   4   5   6   7   8
//! | stream | 0   0   0 | length, BE    | payload ...
//! ```

/// Bytes in front of each payload.
pub const HEADER: usize = 8;

/// The stream of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// An error of the daemon, with which clients end the whole stream.
    SystemError = 3,
}

/// The header of a frame whose payload has `length` bytes.
pub fn header(stream: Stream, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_be_bytes();
    [stream as u8, 0, 0, 0, a, b, c, d]
}

/// Appends `payload` to `out` in one frame. A payload that no frame can hold, of 4 GiB and more,
/// becomes several; an empty one none, because clients take nothing from it.
pub fn append(out: &mut Vec<u8>, stream: Stream, payload: &[u8]) {
    for chunk in payload.chunks(u32::MAX as usize) {
        out.extend_from_slice(&header(stream, chunk.len() as u32));
        out.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_its_stream_and_length() {
        for (stream, payload, frame) in [
            (Stream::Stdout, &b"hi\n"[..], &b"\x01\0\0\0\0\0\0\x03hi\n"[..]),
            (Stream::Stderr, b"!", b"\x02\0\0\0\0\0\0\x01!"),
            (Stream::SystemError, b"", b""),
        ] {
            let mut out = Vec::new();
            append(&mut out, stream, payload);
            assert_eq!(out, frame);
        }
        assert_eq!(header(Stream::Stdin, 0x0102_0304), [0, 0, 0, 0, 1, 2, 3, 4]);
    }
}
