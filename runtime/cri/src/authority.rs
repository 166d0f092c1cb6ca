//! Clients that name a socket's path as the authority of their calls, as grpc-go does for
//! `passthrough:///PATH`.
//!
//! `:authority` must be a host. The h2 crate ends a connection with PROTOCOL_ERROR where it is not,
//! and has no option to change that, while servers in Go accept anything. Nobody here reads the
//! value. So this scans what clients send before h2 sees it: in a path, the characters that no host
//! can have are replaced by others.
//!
//! It is done in place. HPACK (RFC 7541) keeps a table of earlier fields on both sides, and the
//! length of an entry matters to when it is dropped. A character is therefore replaced by one whose
//! Huffman code has the same number of bits, so that the length of no frame and of no entry
//! changes. What cannot be parsed is passed on as it is, and h2 reports what is wrong with it.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

/// How many bytes are read at once.
const CHUNK: usize = 8 << 10;

/// A connection whose client may send `:authority: /run/berth/berth.sock`.
#[derive(Debug)]
pub(super) struct AnyAuthority {
    socket: UnixStream,
    frames: Frames,
    read: BytesMut,
    /// How many bytes of `read` were scanned, and may be passed on.
    seen: usize,
}

impl AnyAuthority {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, frames: Frames::default(), read: BytesMut::new(), seen: 0 }
    }

    /// Reads what there is, up to `CHUNK` bytes. False at the end of the stream.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = [0; CHUNK];
        let mut chunk = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut chunk))?;
        self.read.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(!chunk.filled().is_empty()))
    }
}

impl AsyncRead for AnyAuthority {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        while own.seen == 0 {
            if !ready!(own.poll_chunk(context))? {
                // The end. The frame that has begun will never be whole, so its beginning is passed
                // on as it is.
                own.seen = own.read.len();
                break;
            }
            own.seen = own.frames.scan(&mut own.read);
        }
        // Only what was scanned: h2 must not see the beginning of a frame that is still changed.
        let length = own.seen.min(out.remaining());
        out.put_slice(&own.read[..length]);
        own.read.advance(length);
        own.seen -= length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AnyAuthority {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

impl Connected for AnyAuthority {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The length of what a client sends first (RFC 9113, section 3.4).
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// The length of a frame's header (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// h2 refuses larger frames, because the server announced no larger SETTINGS_MAX_FRAME_SIZE.
const MAX_FRAME: usize = 16 << 10;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// Where in the stream of frames a client is.
#[derive(Debug)]
struct Frames {
    /// How many of the next bytes need no scan.
    skip: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { skip: PREFACE }
    }
}

impl Frames {
    /// Scans the next bytes, and returns how many of them may be passed on. The rest is the
    /// beginning of a frame that has to be whole before it can be scanned.
    ///
    /// A block of fields may continue in CONTINUATION frames. They are not scanned, since
    /// `:authority` is among the first fields of a block.
    fn scan(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            let Some(&[a, b, c, kind, flags, ..]) = bytes[at..].first_chunk::<HEAD>() else {
                return at;
            };
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if kind == HEADERS && length <= MAX_FRAME {
                let Some(payload) = bytes[at + HEAD..].get_mut(..length) else { return at };
                // A block that cannot be parsed is left for h2 to refuse.
                if let Some(value) = fields(flags, payload).and_then(authority) {
                    value.mend();
                }
            }
            self.skip = HEAD + length;
        }
    }
}

/// The block of fields in a HEADERS frame, between its padding and its priority (RFC 9113, section
/// 6.2).
fn fields(flags: u8, payload: &mut [u8]) -> Option<&mut [u8]> {
    let mut range = 0..payload.len();
    if flags & PADDED != 0 {
        range = 1..range.end.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        range.start += 5;
    }
    payload.get_mut(range)
}

/// The index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// The value of `:authority`, where `block` has it as a literal. In later requests it is an index
/// of the table, where the replaced value is.
fn authority(block: &mut [u8]) -> Option<Value<'_>> {
    let mut at = 0;
    loop {
        // The first bits of a field tell its representation, and the rest of that byte begins a
        // number (RFC 7541, section 6).
        let (bits, has_value) = match *block.get(at)? {
            0x80.. => (7, false),
            0x40..0x80 => (6, true),
            // A change of the table's size.
            0x20..0x40 => (5, false),
            ..0x20 => (4, true),
        };
        let (name, after) = number(block, at, bits)?;
        at = after;
        // An index stands for a whole field, and a change of size for none.
        if !has_value {
            continue;
        }
        // Index 0: the name is a literal, and so not `:authority`, unless a client ignores the
        // static table.
        if name == 0 {
            at = string(block, at)?.1.end;
        }
        let (coded, range) = string(block, at)?;
        if name == AUTHORITY {
            let bytes = block.get_mut(range)?;
            return Some(if coded { Value::Coded(bytes) } else { Value::Plain(bytes) });
        }
        at = range.end;
    }
}

/// The integer that begins in the low `bits` of the byte at `at`, and the position after it (RFC
/// 7541, section 5.1). If those bits are all ones, it continues in the bytes that follow.
fn number(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1 << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut at = at + 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(at)?);
        value += (byte & 0x7f) << shift;
        at += 1;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    // Larger than any frame is long.
    None
}

/// Whether the string at `at` is Huffman-coded, and where its bytes are (RFC 7541, section 5.2).
fn string(block: &[u8], at: usize) -> Option<(bool, Range<usize>)> {
    let (length, start) = number(block, at, 7)?;
    let range = start..start + length;
    block.get(range.clone())?;
    Some((block[at] & 0x80 != 0, range))
}

/// The bytes of a string in either of HPACK's two forms.
#[derive(Debug)]
enum Value<'a> {
    Plain(&'a mut [u8]),
    Coded(&'a mut [u8]),
}

/// Characters that make a value a path, since no host has them. `%` is in an escaped one.
const OF_PATHS: &[u8] = b"/%";

/// A character that a host cannot have, or not everywhere, and its replacement. Each comes with its
/// Huffman code, and both codes have the same number of bits.
#[derive(Debug)]
struct Substitute {
    letter: (u8, u32),
    by: (u8, u32),
    bits: usize,
}

/// RFC 7541, appendix B.
const SUBSTITUTES: [Substitute; 6] = [
    Substitute { letter: (b'/', 0x18), by: (b'-', 0x16), bits: 6 },
    Substitute { letter: (b'%', 0x15), by: (b'-', 0x16), bits: 6 },
    Substitute { letter: (b':', 0x5c), by: (b'x', 0x79), bits: 7 },
    Substitute { letter: (b'@', 0x1ffa), by: (b'$', 0x1ff9), bits: 13 },
    Substitute { letter: (b'[', 0x1ffb), by: (b'$', 0x1ff9), bits: 13 },
    Substitute { letter: (b']', 0x1ffc), by: (b'$', 0x1ff9), bits: 13 },
];

impl Value<'_> {
    /// Makes a path acceptable as a host, and leaves anything else alone.
    fn mend(self) {
        match self {
            Value::Plain(bytes) => {
                if bytes.iter().any(|letter| OF_PATHS.contains(letter)) {
                    bytes.iter_mut().for_each(|letter| *letter = plain_substitute(*letter));
                }
            }
            Value::Coded(bytes) => {
                let found = coded_letters(bytes);
                // Whether it is a path is known only after all of it was decoded.
                if found.iter().any(|(_, substitute)| OF_PATHS.contains(&substitute.letter.0)) {
                    found.into_iter().for_each(|(at, substitute)| {
                        put(bytes, at, substitute.bits, substitute.by.1)
                    });
                }
            }
        }
    }
}

fn plain_substitute(letter: u8) -> u8 {
    SUBSTITUTES
        .iter()
        .find(|substitute| substitute.letter.0 == letter)
        .map_or(letter, |substitute| substitute.by.0)
}

/// The characters of a Huffman-coded string that have a substitute, with the position of their
/// first bit.
fn coded_letters(bytes: &[u8]) -> Vec<(usize, &'static Substitute)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((bits, code)) = next_code(bytes, at) {
        let is = |substitute: &&Substitute| (substitute.bits, substitute.letter.1) == (bits, code);
        found.extend(SUBSTITUTES.iter().find(is).map(|substitute| (at, substitute)));
        at += bits;
    }
    found
}

/// How many characters have a Huffman code of 1, 2, ... 30 bits. HPACK's code is canonical: the
/// codes of one length are consecutive numbers, which continue where those of the shorter lengths
/// end. This table is therefore enough to find where a character ends.
const LETTERS: [u32; 30] = [
    0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29,
    0, 4,
];

/// The length and the code of the character that begins at bit `at`. `None` at the end of the
/// string, where up to seven bits are padding.
fn next_code(bytes: &[u8], at: usize) -> Option<(usize, u32)> {
    let mut code = 0;
    // The first code of this length.
    let mut first = 0;
    for (bits, letters) in (1..).zip(LETTERS) {
        code = code << 1 | bit(bytes, at + bits - 1)?;
        first <<= 1;
        if code < first + letters {
            return Some((bits, code));
        }
        first += letters;
    }
    None
}

fn bit(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at / 8).map(|byte| u32::from(byte >> (7 - at % 8) & 1))
}

/// Writes the low `bits` of `code`, beginning at bit `at`.
fn put(bytes: &mut [u8], at: usize, bits: usize, code: u32) {
    for index in 0..bits {
        let byte = &mut bytes[(at + index) / 8];
        let mask = 0x80 >> ((at + index) % 8);
        match code >> (bits - 1 - index) & 1 {
            0 => *byte &= !mask,
            _ => *byte |= mask,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// What is passed on of a conversation that comes in chunks of `size` bytes.
    fn passed(conversation: &[u8], size: usize) -> Vec<u8> {
        let (mut frames, mut held, mut passed) = (Frames::default(), Vec::new(), Vec::new());
        for chunk in conversation.chunks(size) {
            held.extend_from_slice(chunk);
            let seen = frames.scan(&mut held);
            passed.extend(held.drain(..seen));
        }
        [passed, held].concat()
    }

    #[test]
    fn the_code_is_whole() {
        // Kraft's sum is 1, so that every sequence of bits begins a code; and there are 256
        // characters and an end of string.
        let sum: u32 = (1..).zip(LETTERS).map(|(bits, letters)| letters << (30 - bits)).sum();
        assert_eq!((sum, LETTERS.iter().sum::<u32>()), (1 << 30, 257));
    }

    #[test]
    fn paths_become_hosts_of_the_same_length_and_hosts_stay() {
        for (before, after) in [
            ("localhost", "localhost"),
            ("[::1]:80", "[::1]:80"),
            ("user@host:80", "user@host:80"),
            ("/run/berth/berth.sock", "-run-berth-berth.sock"),
            ("%2Frun%2Fberth.sock", "-2Frun-2Fberth.sock"),
            ("/a:b:c@[d]", "-axbxc$$d$"),
            ("", ""),
        ] {
            let mut bytes = before.as_bytes().to_vec();
            Value::Plain(&mut bytes).mend();
            assert_eq!(bytes, after.as_bytes());
        }
        for (before, after) in [
            // "www.example.com" of RFC 7541, appendix C.4.1.
            ("f1e3c2e5f23a6ba0ab90f4ff", "f1e3c2e5f23a6ba0ab90f4ff"),
            // "/run/berth/berth.sock", "%2Frun%2Fberth%2Fberth.sock", "run/a:b:c.sock".
            ("62cb6a6232d899d88cb62675d07275", "5acb6a5a32d899d68cb62675d07275"),
            (
                "54586cb6a5458632d899d51618cb62675d07275f",
                "58586cb6a5858632d899d61618cb62675d07275f",
            ),
            ("b2da981dc8ee11741c9d7f", "b2da961f98fc91741c9d7f"),
            ("", ""),
        ] {
            let mut bytes = hex(before);
            Value::Coded(&mut bytes).mend();
            assert_eq!(bytes, hex(after), "{before}");
        }
    }

    #[test]
    fn nothing_but_a_paths_letters_changes_in_whatever_chunks_it_comes() {
        let field = |value: &[u8]| {
            [&[0x83, 0x3f, 0x00, 0x40, 0x01, b'n', 0x01, b'/', 0x41], value].concat()
        };
        let (path, host) = (field(b"\x02/a"), field(b"\x02-a"));
        let padded = |block: &[u8]| [&[2, 0, 0, 0, 0, 9], block, b"/%"].concat();
        let other = frame(0, 0, b"/%\x41\x02/a");
        let conversation = |block: &[u8]| {
            let frames = [
                frame(HEADERS, 4, block),
                other.clone(),
                frame(HEADERS, 4 | PADDED | PRIORITY, &padded(block)),
                frame(9, 4, b"\x41\x02/a"),
                frame(HEADERS, 0, &[0x83, 0x44, 0x02, b'/', b'a']),
            ];
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frames.concat()].concat()
        };
        let (before, after) = (conversation(&path), conversation(&host));
        for size in 1..=before.len() {
            assert_eq!(passed(&before, size), after, "in chunks of {size}");
            assert_eq!(passed(&after, size), after, "in chunks of {size}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_passed_on() {
        let block = [
            &[0x83, 0x40, 0x02, b'n', b'm', 0x01, b'v', 0x41, 0x8f],
            &hex("62cb6a6232d899d88cb62675d07275")[..],
        ];
        let whole = [&[0; PREFACE][..], &frame(HEADERS, 0, &block.concat()), &frame(0, 0, b"data")]
            .concat();
        for length in 0..whole.len() {
            assert_eq!(passed(&whole[..length], 7).len(), length);
        }
        // With any value in each byte, as many bytes come out as went in, and nothing is held back
        // but incomplete frames.
        for at in PREFACE + HEAD..whole.len() {
            for byte in 0..=u8::MAX {
                let mut wrong = whole.clone();
                wrong[at] = byte;
                assert_eq!(passed(&wrong, 64).len(), whole.len());
            }
        }
        let large =
            [&[0; PREFACE][..], &[0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1], &[0x41; 100]].concat();
        let mut frames = Frames::default();
        assert_eq!(frames.scan(&mut large.clone()), large.len(), "larger than any frame may be");
    }
}
