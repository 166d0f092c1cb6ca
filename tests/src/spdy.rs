//! A client of streaming URLs that speaks SPDY/3.1, and may break the protocol as a test wants. Its
//! header blocks are zlib streams of stored blocks, which need no compression and which any zlib
//! reads.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A session, and what has come on each stream, by the stream's number.
#[derive(Debug)]
pub struct SpdyClient {
    pub socket: TcpStream,
    begun: bool,
    next: u32,
    /// Bytes after the last complete frame.
    rest: Vec<u8>,
    pub came: BTreeMap<u32, Vec<u8>>,
    /// Streams that the server has finished or reset.
    pub ended: Vec<u32>,
}

/// An HTTP response that is not an upgrade.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub head: String,
}

/// Sends a request to upgrade the connection, with these headers; returns the connection when the
/// response is 101.
///
/// # Errors
/// Any other response.
pub fn upgrade(url: &str, headers: &[(&str, &str)]) -> Result<(TcpStream, String), Refusal> {
    let address = url.strip_prefix("http://").expect("a streaming URL");
    let (address, path) = address.split_once('/').expect("a path");
    let mut socket = TcpStream::connect(address).expect("the streaming server listens");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut request = format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    socket.write_all((request + "\r\n").as_bytes()).expect("send the request");
    // Byte by byte, so that nothing of the first frames behind the response is taken.
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|length| length == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if status == 101 { Ok((socket, head)) } else { Err(Refusal { status, head }) }
}

impl SpdyClient {
    /// # Panics
    /// The server does not upgrade.
    pub fn connect(url: &str, protocol: &str) -> Self {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", protocol),
        ];
        let (socket, head) = upgrade(url, &headers).expect("an upgrade");
        assert!(
            head.to_lowercase().contains(&format!("x-stream-protocol-version: {protocol}")),
            "{head}"
        );
        let rest = Vec::new();
        let came = BTreeMap::new();
        let ended = Vec::new();
        Self { socket, begun: false, next: 1, rest, came, ended }
    }

    /// Connects for an exec or attach and opens streams of these types in this order. Their numbers
    /// are 1, 3, 5 and so on.
    pub fn open_all(url: &str, types: &[&str]) -> Self {
        let mut client = Self::connect(url, "v4.channel.k8s.io");
        for kind in types {
            client.open(&[("streamtype", kind)]);
        }
        client
    }

    /// Sends SYN_STREAM; returns the number of the stream.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.bytes());
        }
        let block = self.stored(&block);
        let body = [&id.to_be_bytes()[..], &[0; 6], &block].concat();
        self.control(1, &body);
        id
    }

    /// The bytes as a stored block. All header blocks of a session are one zlib stream, whose
    /// header comes with the first of them.
    pub fn stored(&mut self, bytes: &[u8]) -> Vec<u8> {
        // The zlib header names the dictionary of SPDY by its checksum.
        let beginning: &[u8] = if self.begun { &[] } else { &[0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2] };
        self.begun = true;
        let length = (bytes.len() as u16).to_le_bytes();
        let inverse = (!(bytes.len() as u16)).to_le_bytes();
        [beginning, &[0], &length, &inverse, bytes, &[0, 0, 0, 0xff, 0xff]].concat()
    }

    pub fn control(&mut self, kind: u16, body: &[u8]) {
        let frame = [
            &0x8003_u16.to_be_bytes()[..],
            &kind.to_be_bytes(),
            &(body.len() as u32).to_be_bytes(),
            body,
        ];
        // Ignored: that the server has hung up is noticed when its side is read.
        let _ = self.socket.write_all(&frame.concat());
    }

    pub fn send(&mut self, stream: u32, bytes: &[u8]) {
        self.data(stream, bytes, 0);
    }

    pub fn finish(&mut self, stream: u32) {
        self.data(stream, &[], 1);
    }

    fn data(&mut self, stream: u32, bytes: &[u8], flags: u8) {
        let length = (bytes.len() as u32 | u32::from(flags) << 24).to_be_bytes();
        let _ = self.socket.write_all(&[&stream.to_be_bytes()[..], &length, bytes].concat());
    }

    /// Reads until `enough` holds or the server hangs up.
    pub fn read_until(&mut self, mut enough: impl FnMut(&Self) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while !enough(self) {
            match self.socket.read(&mut buffer)? {
                0 => return Ok(()),
                length => self.take(&buffer[..length]),
            }
        }
        Ok(())
    }

    /// Reads until the server hangs up, and returns what has come on a stream as text.
    pub fn read_all(&mut self, stream: u32) -> String {
        let _ = self.read_until(|_| false);
        self.text(stream)
    }

    pub fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(self.came.get(&stream).map_or(&[], Vec::as_slice)).into_owned()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = self.rest.get(at..at + 8) {
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let Some(body) = self.rest.get(at + 8..at + 8 + length) else { break };
            let id = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            // The highest bit tells control frames from data frames; bit 0 of the flags is FIN.
            if head[0] & 0x80 == 0 {
                self.came.entry(id(head)).or_default().extend_from_slice(body);
                if head[4] & 1 != 0 {
                    self.ended.push(id(head));
                }
            // RST_STREAM, and below PING.
            } else if head[3] == 3 {
                self.ended.push(id(body));
            } else if head[3] == 6 {
                // A ping that came back is kept as stream 0, which no stream has as its number.
                self.came.entry(0).or_default().extend_from_slice(body);
            }
            at += 8 + length;
        }
        self.rest.drain(..at);
    }
}
