//! gRPC clients that send the path of the socket as the authority of their calls, as grpc-go does
//! for the target `passthrough:///PATH`. The frames are written by hand, because no library sends
//! such an authority.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use berth_tests::{Daemon, Machine};

/// Types of HTTP/2 frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A string in HPACK (RFC 7541, section 5.2), short enough for a length of one byte.
fn string(coded: bool, bytes: &[u8]) -> Vec<u8> {
    [&[u8::from(coded) << 7 | bytes.len() as u8], bytes].concat()
}

/// The header block of a call of Version. `authority` is the encoded field of that name, or empty.
fn call(authority: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    block.extend(authority);
    let path = string(false, b"/runtime.v1.RuntimeService/Version");
    let content_type = string(false, b"application/grpc");
    [block, vec![0x44], path, vec![0x5f], content_type].concat()
}

/// The frames HEADERS and DATA of one call.
fn request(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    // An empty gRPC message: a byte for "not compressed" and a length of 0.
    let message = frame(DATA, END_STREAM, stream, &[0; 5]);
    [frame(HEADERS, END_HEADERS | flags, stream, payload), message].concat()
}

fn connect(daemon: &Daemon) -> UnixStream {
    let mut socket = UnixStream::connect(&daemon.socket).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    socket.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    socket
}

/// The message that comes back on `stream`, or why there is none.
fn answer(socket: &mut UnixStream, stream: u32) -> Result<Vec<u8>, String> {
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).map_err(|error| error.to_string())?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).map_err(|error| error.to_string())?;
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            DATA if of == stream => return Ok(payload),
            RST_STREAM if of == stream => return Err(format!("RST_STREAM {payload:?}")),
            GOAWAY => return Err(format!("GOAWAY {payload:?}")),
            _ => {}
        }
    }
}

const CODED_PATH: &str = "62cb6a6232d899d88cb62675d07275";
const CODED_ESCAPES: &str = "54586cb6a5458632d899d51618cb62675d07275f";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[tokio::test]
async fn a_path_in_the_place_of_a_host_is_served() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    // The three representations of a field (RFC 7541, section 6): with incremental indexing,
    // without indexing, and never indexed.
    let field =
        |kind: u8, coded: bool, value: &[u8]| [vec![kind | 1], string(coded, value)].concat();
    let mut authorities = vec![vec![]];
    for kind in [0x40, 0, 0x10] {
        for plain in [
            "localhost",
            "[::1]:80",
            "/run/berth/berth.sock",
            "%2Frun%2Fberth%2Fberth.sock",
            "run/a:b:c@d.sock",
        ] {
            authorities.push(field(kind, false, plain.as_bytes()));
        }
        for coded in [CODED_PATH, CODED_ESCAPES] {
            authorities.push(field(kind, true, &hex(coded)));
        }
    }
    for authority in authorities {
        let mut socket = connect(&daemon);
        socket.write_all(&request(1, 0, &call(&authority))).unwrap();
        let said =
            answer(&mut socket, 1).unwrap_or_else(|error| panic!("{authority:02x?}: {error}"));
        assert!(said.windows(5).any(|part| part == b"berth"), "{authority:02x?}: {said:?}");
    }
}

#[tokio::test]
async fn later_calls_name_it_by_the_dynamic_table_and_frames_come_in_any_pieces() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let mut socket = connect(&daemon);
    let first = call(&[vec![0x41], string(true, &hex(CODED_PATH))].concat());
    // The fields of the first call are the newest entries of the dynamic table now: content-type is
    // 62, path 63, authority 64.
    let later = [0x83, 0x86, 0xc0, 0xbf, 0xbe];
    let padded = [&[3][..], &later, &[0; 3]].concat();
    let with_priority = [&[0, 0, 0, 0, 16][..], &later].concat();
    let stream = [
        request(1, 0, &first),
        request(3, 0, &later),
        request(5, PADDED, &padded),
        request(7, PRIORITY, &with_priority),
    ];
    for byte in stream.concat() {
        socket.write_all(&[byte]).unwrap();
    }
    // Responses may come in any order, so they are counted by stream.
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let mut head = [0; 9];
        socket.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).unwrap();
        assert!(![RST_STREAM, GOAWAY].contains(&head[3]), "{head:?} {payload:?}");
        if head[3] == DATA && payload.windows(5).any(|part| part == b"berth") {
            seen.push(head[8]);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 3, 5, 7]);
}

#[tokio::test]
async fn what_is_no_http2_is_cut_off_and_harms_nobody() {
    let machine = Machine::new();
    let daemon = machine.start().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[0xff; 100],
        // A header block that ends within a field, a string longer than its frame, and a length
        // that never ends.
        &request(1, 0, &[0x83, 0x41]),
        &request(1, 0, &[0x41, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        &request(1, 0, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        &request(1, PADDED | PRIORITY, &[200, 0, 0]),
    ] {
        let mut socket = if garbage[0] == 0 {
            connect(&daemon)
        } else {
            UnixStream::connect(&daemon.socket).unwrap()
        };
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = socket.write_all(garbage);
        assert!(answer(&mut socket, 1).is_err(), "{garbage:02x?}");
    }
    daemon.cri().serving().await.unwrap();
}
