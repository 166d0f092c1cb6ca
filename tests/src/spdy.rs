//! A client of streaming URLs that speaks SPDY/3.1, and can be as rude as a test wants. Its headers are stored and not compressed,
//! which any zlib reads.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The session, and what came on each stream by its number.
#[derive(Debug)]
pub struct SpdyClient {
    pub socket: TcpStream,
    begun: bool,
    next: u32,
    /// Bytes that came behind a whole frame.
    rest: Vec<u8>,
    pub came: BTreeMap<u32, Vec<u8>>,
    /// Streams that the server ended or reset.
    pub ended: Vec<u32>,
}

/// What an HTTP server said: status, headers, and the connection.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub head: String,
}

/// Sends a request for an upgrade, with these headers; the connection, when the answer is 101.
///
/// # Errors
/// Any other answer.
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
    /// When the server does not upgrade.
    pub fn connect(url: &str, protocol: &str) -> Self {
        let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)];
        let (socket, head) = upgrade(url, &headers).expect("an upgrade");
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {protocol}")), "{head}");
        let (rest, came, ended) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { socket, begun: false, next: 1, rest, came, ended }
    }

    /// An exec or attach whose streams are of these types, in this order; their numbers are 1, 3, 5 and so on.
    pub fn open_all(url: &str, types: &[&str]) -> Self {
        let mut client = Self::connect(url, "v4.channel.k8s.io");
        for kind in types {
            client.open(&[("streamtype", kind)]);
        }
        client
    }

    /// SYN_STREAM: the number of the stream.
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

    /// As a block of the one compressed stream of headers.
    pub fn stored(&mut self, bytes: &[u8]) -> Vec<u8> {
        let beginning: &[u8] = if self.begun { &[] } else { &[0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2] };
        self.begun = true;
        let length = (bytes.len() as u16).to_le_bytes();
        let inverse = (!(bytes.len() as u16)).to_le_bytes();
        [beginning, &[0], &length, &inverse, bytes, &[0, 0, 0, 0xff, 0xff]].concat()
    }

    pub fn control(&mut self, kind: u16, body: &[u8]) {
        let frame = [&0x8003_u16.to_be_bytes()[..], &kind.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body];
        // A server that has hung up is seen when it is read.
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

    /// Reads until `enough`, or until the server hangs up.
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

    /// Reads until the server hangs up; what came on a stream as text.
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
            if head[0] & 0x80 == 0 {
                self.came.entry(id(head)).or_default().extend_from_slice(body);
                if head[4] & 1 != 0 {
                    self.ended.push(id(head));
                }
            } else if head[3] == 3 {
                self.ended.push(id(body));
            } else if head[3] == 6 {
                // A ping that came back, under a number that no stream has.
                self.came.entry(0).or_default().extend_from_slice(body);
            }
            at += 8 + length;
        }
        self.rest.drain(..at);
    }
}
