//! SPDY/3.1 frames: bytes in, frames out, and back. No I/O.
//!
//! The framing is that of draft-mbelshe-httpbis-spdy-00 (section 2.6 for control frames, 2.2.2 for
//! data), used as moby/spdystream uses it, which is in the kubelet and in kubectl: without flow
//! control, and with one compressed stream of headers in each direction, shared by all blocks.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Length of the header of every frame.
pub(super) const HEADER: usize = 8;

/// The control bit and the version number, in the first two bytes of a control frame.
const VERSION: u16 = 0x8003;
/// The flag with which a side says that this was its last frame on the stream.
const FIN: u8 = 1;
/// The top bit of a stream's number is reserved.
const STREAM_ID: u32 = 0x7fff_ffff;
/// Bytes of a control frame. Real ones open a stream with a handful of short headers.
const MAX_CONTROL: usize = 64 << 10;
/// Bytes of a block of headers after decompression, which could multiply them a thousandfold.
const MAX_BLOCK: usize = 64 << 10;

/// Types of control frames (section 2.6).
mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
}

/// By name, which is in lower case.
pub(super) type Headers = BTreeMap<String, String>;

/// What the client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A new stream. With `fin` the client will send nothing on it.
    Open {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    /// Bytes of a stream. A frame that arrives in several reads comes as several parts, of which
    /// the last one has the `fin` of the frame.
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    /// The client will open no more streams.
    GoAway,
}

/// A frame after which the two sides do not understand each other any more, so that the connection
/// has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("not SPDY/3.1")]
    Version,
    #[error("a frame is too short for its type")]
    Length,
    #[error("a control frame is too long")]
    TooLong,
    #[error("headers are not compressed with zlib and the dictionary of SPDY/3.1")]
    Compression,
    #[error("headers are too large")]
    TooManyHeaders,
    #[error("headers are malformed")]
    Headers,
    #[error("the number of a new stream is not odd, or not above those before")]
    StreamId,
}

/// Reads frames from bytes as they arrive.
pub(super) struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
    /// The highest number of a stream so far.
    last: u32,
    /// The data frame of which not everything has arrived.
    open: Option<OpenFrame>,
}

#[derive(Clone, Copy)]
struct OpenFrame {
    id: u32,
    missing: usize,
    flags: u8,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Decompress::new(true), last: 0, open: None }
    }

    /// Where the caller appends what it reads.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The connection has to end.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Violation> {
        loop {
            if let Some(open) = self.open {
                return Ok(self.payload(open));
            }
            let Some(&[a, b, c, d, flags, e, f, g]) = self.buffer.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let length = u32::from_be_bytes([0, e, f, g]) as usize;
            // The top bit tells control frames from data frames, which are handed on in parts: a
            // frame may be 16 MiB long and is never held as a whole.
            if a & 0x80 == 0 {
                self.buffer.advance(HEADER);
                let id = u32::from_be_bytes([a, b, c, d]);
                self.open = Some(OpenFrame { id, missing: length, flags });
                continue;
            }
            if u16::from_be_bytes([a, b]) != VERSION {
                return Err(Violation::Version);
            }
            // Before anything of that length is waited for.
            if length > MAX_CONTROL {
                return Err(Violation::TooLong);
            }
            if self.buffer.len() < HEADER + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            let body = self.buffer.split_to(length).freeze();
            if let Some(frame) = self.control(u16::from_be_bytes([c, d]), flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    /// What has arrived of a data frame.
    fn payload(&mut self, OpenFrame { id, missing, flags }: OpenFrame) -> Option<Frame> {
        // A frame without a payload is complete at once: its flag may be all that it says.
        if missing > 0 && self.buffer.is_empty() {
            return None;
        }
        let bytes = self.buffer.split_to(missing.min(self.buffer.len())).freeze();
        let missing = missing - bytes.len();
        self.open = (missing > 0).then_some(OpenFrame { id, missing, flags });
        Some(Frame::Data { id, bytes, fin: missing == 0 && flags & FIN != 0 })
    }

    /// `None` for what needs no reaction.
    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        mut body: Bytes,
    ) -> Result<Option<Frame>, Violation> {
        match kind {
            // Stream, associated stream, priority, slot, headers.
            kind::SYN_STREAM => {
                at_least(&body, 10)?;
                let id = body.get_u32() & STREAM_ID;
                body.advance(6);
                let headers = self.headers(&body)?;
                // Streams of the client have odd numbers, and each one a higher number than the
                // ones before (section 2.3.2).
                if id.is_multiple_of(2) || id <= self.last {
                    return Err(Violation::StreamId);
                }
                self.last = id;
                Ok(Some(Frame::Open { id, headers, fin: flags & FIN != 0 }))
            }
            // Nobody here opens streams or waits for more headers. They are read all the same:
            // without them the blocks that follow in the compressed stream would be unreadable.
            kind::SYN_REPLY | kind::HEADERS => {
                at_least(&body, 4)?;
                self.headers(&body[4..])?;
                Ok(None)
            }
            kind::RST_STREAM => {
                at_least(&body, 8)?;
                Ok(Some(Frame::Reset { id: body.get_u32() & STREAM_ID }))
            }
            kind::PING => {
                at_least(&body, 4)?;
                Ok(Some(Frame::Ping { id: body.get_u32() }))
            }
            kind::GOAWAY => Ok(Some(Frame::GoAway)),
            // SETTINGS and WINDOW_UPDATE mean nothing without flow control; unknown types are to be
            // ignored (section 2.2.1).
            _ => Ok(None),
        }
    }

    /// Decompresses and parses a block of headers (section 2.6.10).
    fn headers(&mut self, compressed: &[u8]) -> Result<Headers, Violation> {
        let block = self.inflate(compressed)?;
        let (count, mut rest) = block.split_first_chunk::<4>().ok_or(Violation::Headers)?;
        let mut headers = Headers::new();
        // A count that is too large ends with the text, at the first name that is not there.
        for _ in 0..u32::from_be_bytes(*count) {
            let name = text(&mut rest)?;
            let value = text(&mut rest)?;
            if name.is_empty() || name.contains(|c: char| c.is_ascii_uppercase()) {
                return Err(Violation::Headers);
            }
            if headers.insert(name, value).is_some() {
                return Err(Violation::Headers);
            }
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, Violation> {
        let mut block = Vec::with_capacity(1024);
        loop {
            if block.len() == block.capacity() {
                if block.len() >= MAX_BLOCK {
                    return Err(Violation::TooManyHeaders);
                }
                block.reserve(block.len());
            }
            let before = self.inflate.total_in();
            // `decompress_vec` writes into the vector's spare capacity and never grows it, which
            // is what bounds the memory.
            let room = block.capacity();
            let result = self.inflate.decompress_vec(compressed, &mut block, FlushDecompress::Sync);
            compressed = &compressed[(self.inflate.total_in() - before) as usize..];
            match result {
                // zlib asks for it once, at the beginning of the stream.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(|_| Violation::Compression)?;
                }
                // The compressed stream goes on for as long as the connection does.
                Err(_) | Ok(Status::StreamEnd) => return Err(Violation::Compression),
                // Where room is left, zlib had nothing more to write.
                Ok(_) if compressed.is_empty() && block.len() < room => return Ok(block),
                // It took nothing either, and would not the next time.
                Ok(_) if block.len() < room => return Err(Violation::Compression),
                Ok(_) => {}
            }
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("last", &self.last).finish_non_exhaustive()
    }
}

fn at_least(body: &Bytes, length: usize) -> Result<(), Violation> {
    if body.len() < length { Err(Violation::Length) } else { Ok(()) }
}

/// A text behind its length, which is taken off `rest`.
fn text(rest: &mut &[u8]) -> Result<String, Violation> {
    let (length, behind) = rest.split_first_chunk::<4>().ok_or(Violation::Headers)?;
    let length = u32::from_be_bytes(*length) as usize;
    let text = behind.get(..length).ok_or(Violation::Headers)?;
    *rest = &behind[length..];
    String::from_utf8(text.to_vec()).map_err(|_| Violation::Headers)
}

/// Writes the frames that need a state: those with compressed headers.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// Whether the compressed stream of headers has begun.
    begun: bool,
}

impl Encoder {
    /// SYN_REPLY, which accepts a stream, without any headers.
    ///
    /// Its block is always the same four zero bytes, so it is put into the compressed stream as it
    /// is, as a "stored" block of deflate (RFC 1951, section 3.2.4): no compressor is needed, and
    /// none of the quarter of a megabyte that one keeps for each connection.
    pub(super) fn reply(&mut self, id: u32) -> Vec<u8> {
        /// The header of a zlib stream, with the checksum of its dictionary (RFC 1950).
        const BEGINNING: [u8; 6] = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
        /// A stored block of four bytes: the count of headers, which is 0.
        const NO_HEADERS: [u8; 9] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0];
        /// An empty stored block, which zlib writes at each flush.
        const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
        let beginning: &[u8] = if self.begun { &[] } else { &BEGINNING };
        self.begun = true;
        let body = [&id.to_be_bytes(), beginning, &NO_HEADERS, &FLUSH].concat();
        control(kind::SYN_REPLY, &body)
    }
}

/// The header of a data frame with a payload of `length` bytes, which must be below 16 MiB.
pub(super) fn data(id: u32, length: usize, fin: bool) -> [u8; HEADER] {
    let [a, b, c, d] = id.to_be_bytes();
    let [_, e, f, g] = (length as u32).to_be_bytes();
    [a, b, c, d, u8::from(fin), e, f, g]
}

/// RST_STREAM: ends a stream in both directions.
pub(super) fn reset(id: u32, status: ResetStatus) -> Vec<u8> {
    control(kind::RST_STREAM, &[id.to_be_bytes(), (status as u32).to_be_bytes()].concat())
}

/// Section 2.6.3.
#[derive(Clone, Copy, Debug)]
pub(super) enum ResetStatus {
    RefusedStream = 3,
    Cancel = 5,
}

/// The reply to a PING, which is the same frame.
pub(super) fn pong(id: u32) -> Vec<u8> {
    control(kind::PING, &id.to_be_bytes())
}

/// GOAWAY, with status OK. `last` is the highest number of a stream that this side has accepted.
pub(super) fn go_away(last: u32) -> Vec<u8> {
    control(kind::GOAWAY, &[last.to_be_bytes(), [0; 4]].concat())
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend(VERSION.to_be_bytes());
    frame.extend(kind.to_be_bytes());
    // Flags in the first byte, then 24 bits of length; bodies here are short and have no flags.
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

/// The target of `hack/fuzz`: however the bytes are cut, the same frames come out, and little is
/// kept in memory.
///
/// # Panics
/// When that does not hold.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let (mut whole, violation) = fuzz_read([data].into_iter());
    let (mut cut, violation_of_cut) = fuzz_read(data.chunks(1));
    // In how many parts the data of a stream comes depends on the cuts.
    let is_control = |frame: &String| !frame.starts_with(|first: char| first.is_ascii_digit());
    whole.retain(is_control);
    cut.retain(is_control);
    assert_eq!((whole, violation), (cut, violation_of_cut));
}

/// All frames of an input that arrives in chunks, in words, and what ended it.
#[cfg(fuzzing)]
fn fuzz_read<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Option<Violation>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.buffer().extend_from_slice(chunk);
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(Frame::Data { id, bytes, fin })) => {
                    frames.push(format!("{id} {bytes:?} {fin}"))
                }
                Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                Err(violation) => return (frames, Some(violation)),
            }
        }
        let kept = decoder.buffer().len();
        assert!(kept <= HEADER + MAX_CONTROL, "{kept} bytes are kept");
    }
    (frames, None)
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// The client's side of a connection.
    struct Client(Compress);

    impl Client {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).unwrap();
            Self(compress)
        }

        fn block(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(bytes.len() + 1024);
            self.0.compress_vec(bytes, &mut out, FlushCompress::Sync).unwrap();
            out
        }

        fn open(&mut self, id: u32, headers: &[(&str, &str)], fin: bool) -> Vec<u8> {
            let mut block = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                block.extend((text.len() as u32).to_be_bytes());
                block.extend(text.bytes());
            }
            let mut frame =
                control(1, &[&id.to_be_bytes()[..], &[0; 6], &self.block(&block)].concat());
            frame[4] = u8::from(fin);
            frame
        }
    }

    fn all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, Violation> {
        decoder.buffer().extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn an_empty_block_of_another_clients_zlib_is_read() {
        // As zlib compresses it at level 9.
        let vector =
            [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x06, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(Decoder::new().headers(&vector), Ok(Headers::new()));
    }

    #[test]
    fn streams_are_opened_and_their_headers_share_one_compressed_stream() {
        let (mut client, mut decoder) = (Client::new(), Decoder::new());
        let headers = [("streamtype", "stdin"), ("requestid", "7")];
        let bytes = [client.open(1, &headers, false), client.open(3, &headers, true)].concat();
        // However the bytes are cut.
        let mut frames = Vec::new();
        for byte in &bytes {
            frames.extend(all(&mut decoder, &[*byte]).unwrap());
        }
        let wanted: Headers =
            headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let open = |id, fin| Frame::Open { id, headers: wanted.clone(), fin };
        assert_eq!(frames, [open(1, false), open(3, true)]);
        assert_eq!(all(&mut decoder, &client.open(3, &headers, false)), Err(Violation::StreamId));
    }

    #[test]
    fn data_comes_as_it_arrives() {
        let mut decoder = Decoder::new();
        let frame = [&data(5, 6, true)[..], b"abcdef"].concat();
        let part = |text: &'static str, fin| Frame::Data { id: 5, bytes: text.into(), fin };
        assert_eq!(all(&mut decoder, &frame[..10]).unwrap(), [part("ab", false)]);
        assert_eq!(all(&mut decoder, &frame[10..]).unwrap(), [part("cdef", true)]);
        assert_eq!(all(&mut decoder, &data(5, 0, true)).unwrap(), [part("", true)]);
        assert_eq!(all(&mut decoder, &data(5, 0, false)).unwrap(), [part("", false)]);
    }

    #[test]
    fn other_frames_are_told_or_ignored() {
        let mut decoder = Decoder::new();
        let settings = control(4, &[0; 12]);
        let bytes =
            [settings, pong(9), reset(7, ResetStatus::Cancel), control(9, &[0; 8]), go_away(0)]
                .concat();
        assert_eq!(
            all(&mut decoder, &bytes).unwrap(),
            [Frame::Ping { id: 9 }, Frame::Reset { id: 7 }, Frame::GoAway]
        );
    }

    #[test]
    fn replies_are_one_compressed_stream_too() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new());
        for id in [1, 3, 5] {
            let reply = encoder.reply(id);
            assert_eq!(reply[..8], [0x80, 3, 0, 2, 0, 0, 0, reply.len() as u8 - 8]);
            assert_eq!(decoder.headers(&reply[12..]), Ok(Headers::new()), "{id}");
        }
    }

    #[test]
    fn what_is_not_spdy_ends_the_session_with_bounded_memory() {
        let mut client = Client::new();
        let bomb = [&1_u32.to_be_bytes()[..], &vec![0; 32 << 20]].concat();
        let mut compressed = Vec::with_capacity(1 << 20);
        client.0.compress_vec(&bomb, &mut compressed, FlushCompress::Sync).unwrap();
        let bomb = control(1, &[&1_u32.to_be_bytes()[..], &[0; 6], &compressed].concat());
        let mut one = Client::new();
        let mut other = Client::new();
        for (bytes, violation) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), None),
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Some(Violation::Version)),
            (vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], Some(Violation::TooLong)),
            (control(1, &[0; 4]), Some(Violation::Length)),
            (control(3, &[0; 4]), Some(Violation::Length)),
            (control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]), Some(Violation::Compression)),
            (bomb, Some(Violation::TooManyHeaders)),
            (one.open(1, &[("Upper", "x")], false), Some(Violation::Headers)),
            (other.open(1, &[("a", "x"), ("a", "y")], false), Some(Violation::Headers)),
            (Client::new().open(2, &[], false), Some(Violation::StreamId)),
        ] {
            let result = all(&mut Decoder::new(), &bytes);
            match violation {
                Some(violation) => assert_eq!(result, Err(violation)),
                // It reads as data of a stream that does not exist.
                None => assert!(result.is_ok()),
            }
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        // A small generator will do: the fuzz target has the time.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..2000 {
            let mut bytes = Vec::new();
            for _ in 0..64 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.push(state as u8);
            }
            bytes[..2].copy_from_slice(&VERSION.to_be_bytes());
            bytes[2..8].copy_from_slice(&[0, (state % 10) as u8, 0, 0, 0, 48]);
            let _ = all(&mut Decoder::new(), &bytes);
        }
    }
}
