//! SPDY/3.1 as the kubelet and crictl speak it: bytes in, frames out, and back. No I/O.
//!
//! The framing is that of draft-mbelshe-httpbis-spdy-00 (section 2.6 for control frames, 2.2.2 for data), as spdystream uses it: no flow
//! control, and one compressed stream of headers for each direction, however many blocks there are.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Bytes before each payload that is sent, for whoever leaves room for them.
pub(crate) const HEADER: usize = 8;

const VERSION: u16 = 0x8003;
const FIN: u8 = 1;
/// Of a control frame. Streams have a handful of short headers.
const MAX_CONTROL: usize = 64 << 10;
/// Of a block of headers, inflated.
const MAX_BLOCK: usize = 64 << 10;

pub(crate) type Headers = BTreeMap<String, String>;

/// What the peer said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A new stream; `fin`: it will send nothing on it.
    Open {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    /// A part of what was sent on a stream; parts come as they arrive, the last one with `fin`.
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
    /// No more streams.
    GoAway,
}

/// What ends a session: after it the two sides do not understand one another any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("not SPDY/3.1")]
    Version,
    #[error("a frame of this type has another length")]
    Length,
    #[error("a control frame is too long")]
    TooLong,
    #[error("headers are not compressed as agreed")]
    Compression,
    #[error("headers are too large")]
    TooManyHeaders,
    #[error("headers are malformed")]
    Headers,
    #[error("a stream has a number that is not the client's next")]
    StreamId,
}

/// Reads frames from bytes as they come.
pub(crate) struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
    last: u32,
    /// Of a data frame whose payload is not all there: stream, what is missing, and its flags.
    open: Option<(u32, usize, u8)>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Decompress::new(true), last: 0, open: None }
    }

    /// Where more bytes go.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Violation> {
        loop {
            if let Some((id, missing, flags)) = self.open {
                return Ok(self.payload(id, missing, flags));
            }
            let Some(&[a, b, c, d, flags, e, f, g]) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
            let length = u32::from_be_bytes([0, e, f, g]) as usize;
            if a & 0x80 == 0 {
                self.buffer.advance(HEADER);
                self.open = Some((u32::from_be_bytes([a, b, c, d]), length, flags));
                continue;
            }
            if u16::from_be_bytes([a, b]) != VERSION {
                return Err(Violation::Version);
            }
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

    fn payload(&mut self, id: u32, missing: usize, flags: u8) -> Option<Frame> {
        if missing > 0 && self.buffer.is_empty() {
            return None;
        }
        let bytes = self.buffer.split_to(missing.min(self.buffer.len())).freeze();
        let left = missing - bytes.len();
        self.open = (left > 0).then_some((id, left, flags));
        Some(Frame::Data { id, bytes, fin: left == 0 && flags & FIN != 0 })
    }

    /// `None` for what needs no answer.
    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, Violation> {
        let length = |wanted: usize| if body.len() < wanted { Err(Violation::Length) } else { Ok(()) };
        match kind {
            // SYN_STREAM: stream, associated stream, priority, slot, headers.
            1 => {
                length(10)?;
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                let headers = self.headers(&body)?;
                if id.is_multiple_of(2) || id <= self.last {
                    return Err(Violation::StreamId);
                }
                self.last = id;
                Ok(Some(Frame::Open { id, headers, fin: flags & FIN != 0 }))
            }
            // SYN_REPLY and HEADERS: nobody here opens streams or waits for more headers, but the compressed stream goes on.
            2 | 8 => {
                length(4)?;
                self.headers(&body[4..])?;
                Ok(None)
            }
            3 => {
                length(8)?;
                Ok(Some(Frame::Reset { id: body.get_u32() & 0x7fff_ffff }))
            }
            6 => {
                length(4)?;
                Ok(Some(Frame::Ping { id: body.get_u32() }))
            }
            7 => Ok(Some(Frame::GoAway)),
            // SETTINGS, WINDOW_UPDATE, and what is not known.
            _ => Ok(None),
        }
    }

    fn headers(&mut self, compressed: &[u8]) -> Result<Headers, Violation> {
        let block = self.inflate(compressed)?;
        let (count, mut rest) = block.split_first_chunk::<4>().ok_or(Violation::Headers)?;
        let mut headers = Headers::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
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
            let (before, room) = (self.inflate.total_in(), block.capacity());
            let result = self.inflate.decompress_vec(compressed, &mut block, FlushDecompress::Sync);
            compressed = &compressed[(self.inflate.total_in() - before) as usize..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| Violation::Compression)?;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Violation::Compression),
                // All that there is has been written once it leaves room.
                Ok(_) if compressed.is_empty() && block.len() < room => return Ok(block),
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

fn text(rest: &mut &[u8]) -> Result<String, Violation> {
    let (length, behind) = rest.split_first_chunk::<4>().ok_or(Violation::Headers)?;
    let length = u32::from_be_bytes(*length) as usize;
    let text = behind.get(..length).ok_or(Violation::Headers)?;
    *rest = &behind[length..];
    String::from_utf8(text.to_vec()).map_err(|_| Violation::Headers)
}

/// Writes frames.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Whether the compressed stream of headers has begun.
    begun: bool,
}

impl Encoder {
    /// SYN_REPLY without headers. The block is stored and not compressed, which takes no state, and then flushed.
    pub(crate) fn reply(&mut self, id: u32) -> Vec<u8> {
        const BEGINNING: [u8; 6] = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
        const NO_HEADERS: [u8; 9] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0];
        const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
        let beginning: &[u8] = if self.begun { &[] } else { &BEGINNING };
        self.begun = true;
        control(2, &[&id.to_be_bytes(), beginning, &NO_HEADERS, &FLUSH].concat())
    }
}

/// What goes before a payload of `length` bytes, below 16 MiB.
pub(crate) fn data(id: u32, length: usize, fin: bool) -> [u8; HEADER] {
    let [a, b, c, d] = id.to_be_bytes();
    let [_, e, f, g] = (length as u32).to_be_bytes();
    [a, b, c, d, u8::from(fin), e, f, g]
}

/// RST_STREAM.
pub(crate) fn reset(id: u32, status: ResetStatus) -> Vec<u8> {
    control(3, &[id.to_be_bytes(), (status as u32).to_be_bytes()].concat())
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ResetStatus {
    Refused = 3,
    Cancel = 5,
}

pub(crate) fn pong(id: u32) -> Vec<u8> {
    control(6, &id.to_be_bytes())
}

/// GOAWAY, with status OK.
pub(crate) fn go_away(last: u32) -> Vec<u8> {
    control(7, &[last.to_be_bytes(), [0; 4]].concat())
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend(VERSION.to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

/// Of section 2.6.10.1: what both sides have in mind before the first header.
fn dictionary() -> Vec<u8> {
    const NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age \
        allow authorization cache-control connection content-base content-encoding content-language content-length \
        content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
        if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
        proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
        www-authenticate method get status";
    const MORE: [&str; 8] = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const VALUES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
        404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
        publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::with_capacity(1423);
    for word in NAMES.split_whitespace().chain(MORE) {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.bytes());
    }
    dictionary.extend(VALUES.bytes());
    dictionary
}

/// What `hack/fuzz` feeds: however the bytes are cut, the same frames come, and little is kept.
///
/// # Panics
/// When that does not hold.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
        for piece in pieces {
            decoder.buffer().extend_from_slice(piece);
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    // How data is cut is the business of whoever sent it.
                    Ok(Some(Frame::Data { id, bytes, fin })) => frames.push(format!("{id} {bytes:?} {fin}")),
                    Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                    Err(violation) => return (frames, Some(violation)),
                }
            }
            assert!(decoder.buffer().len() <= HEADER + MAX_CONTROL, "{} bytes are kept", decoder.buffer().len());
        }
        (frames, None)
    };
    let is_control = |frame: &String| !frame.starts_with(|first: char| first.is_ascii_digit());
    let (mut whole, one) = read(&mut [data].into_iter());
    let (mut cut, other) = read(&mut data.chunks(1));
    whole.retain(is_control);
    cut.retain(is_control);
    assert_eq!((whole, one), (cut, other));
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// A client's side.
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
            let mut frame = control(1, &[&id.to_be_bytes()[..], &[0; 6], &self.block(&block)].concat());
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
    fn the_dictionary_is_that_of_the_draft() {
        let dictionary = dictionary();
        let (a, b) = dictionary.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
        // The vector of a client that nobody here wrote: an empty block, as zlib compresses it at level 9.
        let vector = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x06, 0, 0, 0, 0, 0xff, 0xff];
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
        let wanted: Headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
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
        let bytes = [settings, pong(9), reset(7, ResetStatus::Cancel), control(9, &[0; 8]), go_away(0)].concat();
        assert_eq!(all(&mut decoder, &bytes).unwrap(), [Frame::Ping { id: 9 }, Frame::Reset { id: 7 }, Frame::GoAway]);
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
    fn what_is_no_spdy_ends_the_session_with_bounded_memory() {
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
                // Data of a stream that does not exist.
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
