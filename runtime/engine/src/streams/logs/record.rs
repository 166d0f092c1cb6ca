//! One record of the log file as one piece of the client's stream.
//!
//! ```text
//! file    2016-10-06T00:07:09.794669202Z stdout F hello\n
//! client  | 1 0 0 0 | length | [time ' '] [attributes ' '] hello\n
//! ```
//!
//! The shim cuts lines of more than 16 KiB into partial records (`P`), as dockerd does, and ends
//! with one if the last line has no newline. Those have no newline in the stream either.

use std::{collections::BTreeMap, ops::ControlFlow};

use berth_shim::timestamp::rfc3339;

use super::options::LogOptions;
use crate::streams::frames::{self, HEADER, Stream};

/// Bytes of a time with nine digits of fraction.
const TIME: usize = 30;
/// Bytes in front of the text, since both streams have names of six letters.
const PREFIX: usize = TIME + " stdout F ".len();

/// Makes the client's stream out of records.
#[derive(Debug)]
pub(super) struct Renderer {
    streams: [bool; 2],
    /// The text of the first time that is wanted. None any more once a record had it: the clock
    /// may have been set back, and then later records are not left out again.
    since: Option<String>,
    until: Option<String>,
    timestamps: bool,
    /// The attributes and the space behind them, the same for all records.
    details: String,
    tty: bool,
}

/// A record of the file.
struct Record<'a> {
    time: &'a [u8],
    stream: Stream,
    is_partial: bool,
    text: &'a [u8],
}

impl Renderer {
    pub(super) fn new(options: &LogOptions) -> Self {
        Self {
            streams: [options.stdout, options.stderr],
            since: options.since.map(rfc3339),
            until: options.until.map(rfc3339),
            timestamps: options.timestamps,
            details: options.details.as_ref().map_or_else(String::new, details),
            tty: options.tty,
        }
    }

    /// Appends the records of `lines`, which is whole lines, to `out`. Breaks at the first record
    /// that is later than what was asked for.
    pub(super) fn render(&mut self, lines: &[u8], out: &mut Vec<u8>) -> ControlFlow<()> {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', lines) {
            let line = &lines[start..end];
            start = end + 1;
            // A line that no shim has written is one that a full disk has cut off.
            let Some(record) = Record::parse(line) else { continue };
            if let Some(since) = &self.since {
                if record.time < since.as_bytes() {
                    continue;
                }
                self.since = None;
            }
            if self.until.as_ref().is_some_and(|until| record.time > until.as_bytes()) {
                return ControlFlow::Break(());
            }
            if self.streams[usize::from(record.stream == Stream::Stderr)] {
                self.append(&record, out);
            }
        }
        ControlFlow::Continue(())
    }

    fn append(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        if !self.tty {
            out.extend_from_slice(&[0; HEADER]);
        }
        if self.timestamps {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(self.details.as_bytes());
        out.extend_from_slice(record.text);
        if !record.is_partial {
            // The shim leaves out the CR that a terminal puts before each LF.
            out.extend_from_slice(if self.tty { b"\r\n" } else { b"\n" });
        }
        if !self.tty {
            let length = (out.len() - start - HEADER) as u32;
            let header = frames::header(record.stream, length);
            out[start..start + HEADER].copy_from_slice(&header);
        }
    }
}

impl<'a> Record<'a> {
    /// `None` if the line is not a record.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (prefix, text) = line.split_at_checked(PREFIX)?;
        let (time, rest) = prefix.split_at(TIME);
        let (stream, is_partial) = match rest {
            b" stdout F " => (Stream::Stdout, false),
            b" stdout P " => (Stream::Stdout, true),
            b" stderr F " => (Stream::Stderr, false),
            b" stderr P " => (Stream::Stderr, true),
            _ => return None,
        };
        Some(Self { time, stream, is_partial, text })
    }
}

/// The attributes of a log in the form of `logs --details`: escaped as in the query of a URL
/// (Go's `url.QueryEscape`), sorted by key, and a space behind them, even if there are none.
fn details(attributes: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = attributes
        .iter()
        .map(|(key, value)| format!("{}={}", query_escape(key), query_escape(value)))
        .collect();
    pairs.join(",") + " "
}

fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}
