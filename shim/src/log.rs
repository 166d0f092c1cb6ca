//! The CRI log: `<RFC3339Nano> <stream> <P|F> <text>\n`, one file for both streams, reopened after a rotation.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::error::{Result, Step};

/// A longer line is cut into partial records, as containerd does (`max_container_log_line_size`).
const MAX_LINE: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The file. A write that fails loses its records and nothing else: the container must not stop because a disk is full.
#[derive(Debug)]
pub(crate) struct Log {
    target: Option<(PathBuf, File)>,
}

impl Log {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let target = path.map(|path| open(path).map(|file| (path.to_owned(), file))).transpose()?;
        Ok(Self { target })
    }

    /// Goes on in a new file of the same name.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        if let Some((path, file)) = &mut self.target {
            *file = open(path)?;
        }
        Ok(())
    }

    /// Whole records, in one write(2), so that a rename in between never tears a line.
    pub(crate) fn write(&mut self, records: &[u8]) {
        if let Some((_, file)) = &mut self.target
            && !records.is_empty()
        {
            let _ = file.write_all(records);
        }
    }
}

/// O_NOFOLLOW: the last component is ours to make, whoever can write the directory (CVE-2025-0750).
fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .step_on("open log", path)
}

/// Turns the bytes of one stream into records.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// The line that has no end yet; at most `MAX_LINE`.
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Appends to `out` a record for every line that `bytes` ends or fills.
    pub(crate) fn push(&mut self, bytes: &[u8], time: &str, out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut text = piece.strip_suffix(b"\n").unwrap_or(piece);
            while self.partial.len() + text.len() > MAX_LINE {
                let (head, tail) = text.split_at(MAX_LINE - self.partial.len());
                self.partial.extend_from_slice(head);
                self.record(time, 'P', out);
                text = tail;
            }
            self.partial.extend_from_slice(text);
            if piece.ends_with(b"\n") {
                if self.partial.last() == Some(&b'\r') {
                    self.partial.pop();
                }
                self.record(time, 'F', out);
            }
        }
    }

    /// What the stream ended with, without a newline.
    pub(crate) fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.record(time, 'P', out);
        }
    }

    fn record(&mut self, time: &str, tag: char, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{time} {} {tag} ", self.stream.name()).as_bytes());
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// RFC 3339 in UTC with nine digits of fraction.
pub(crate) fn rfc3339(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date in the proleptic Gregorian calendar, counted from 1 March of year 0 so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_475_712_429_794_669_202, "2016-10-06T00:07:09.794669202Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(nanos), text);
        }
    }

    fn records(chunks: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(Stream::Stderr), Vec::new());
        for chunk in chunks {
            lines.push(chunk, "T", &mut out);
        }
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_become_records() {
        for (chunks, expected) in [
            (&[b"a\nb\n".as_slice()][..], "T stderr F a\nT stderr F b\n"),
            (&[b"a", b"b\r\n", b"\n"], "T stderr F ab\nT stderr F \n"),
            (&[b"no end"], "T stderr P no end\n"),
            (&[b""], ""),
        ] {
            assert_eq!(records(chunks), expected);
        }
    }

    #[test]
    fn long_lines_are_cut_into_partial_records() {
        let line = vec![b'x'; 2 * MAX_LINE + 5];
        let text = records(&[&line, b"\n"]);
        let lengths: Vec<(usize, bool)> =
            text.lines().map(|line| (line.len() - "T stderr F ".len(), line.contains(" P "))).collect();
        assert_eq!(lengths, [(MAX_LINE, true), (MAX_LINE, true), (5, false)]);
        let exact = records(&[&line[..MAX_LINE], b"\n"]);
        assert_eq!(exact.lines().count(), 1, "a line of just the limit is whole");
    }
}
