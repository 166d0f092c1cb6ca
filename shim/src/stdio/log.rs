//! The log in CRI's format, one file for both streams. A line has a time in RFC 3339, the name of
//! the stream, `F` for a full or `P` for a partial line, and the text. The kubelet renames the file
//! when it is full, and has it reopened; for others this does it by itself (`LogRotation`), since
//! the daemon may not be there.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use berth_shim::{
    spec::{LogRotation, Stdio},
    timestamp::rfc3339,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, renameat},
    io::Errno,
};

use crate::error::{Failure, Result, Step, failure};

/// A longer line, in bytes, is cut into partial records (`P`), as containerd does
/// (`max_container_log_line_size`).
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

/// The log file. A write that fails loses its records and does nothing else: the container must not
/// stop because a disk is full. As soon as a write succeeds again, a line says how many are
/// missing.
#[derive(Debug)]
pub(crate) struct Log {
    target: Option<Target>,
    rotation: Option<LogRotation>,
    lost: Lost,
}

#[derive(Debug)]
struct Target {
    path: PathBuf,
    directory: PathBuf,
    file: File,
}

/// What is missing behind the last whole record of the file.
#[derive(Debug, Default)]
struct Lost {
    records: usize,
    /// The error of the write that failed.
    why: String,
    /// The file ends with part of a record that could not be cut off again.
    torn: bool,
}

impl Target {
    fn open(path: &Path, directory: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            directory: directory.to_owned(),
            file: open(path, directory)?,
        })
    }
}

impl Target {
    /// Goes on in a new file, and keeps the old one beside it, unless there is to be one only.
    ///
    /// A reader finds each file under one of its names, whenever it looks.
    fn rotate(&mut self, max_files: u32) -> Result<()> {
        let (directory, name) = parent(&self.path, &self.directory)?;
        let named = |end: &str| {
            let mut named = name.to_os_string();
            named.push(end);
            named
        };
        // Made first: on a full disk the old one stays as it is.
        let fresh = named(".new");
        let file = open_in(&directory, &fresh, &self.path)?;
        let rename = |from: &OsStr, to: &OsStr| match renameat(&directory, from, &directory, to) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).step_on("rename log", &self.path),
        };
        for number in (1..max_files.saturating_sub(1)).rev() {
            let next = number + 1;
            rename(&named(&format!(".{number}")), &named(&format!(".{next}")))?;
        }
        if max_files > 1 {
            rename(name, &named(".1"))?;
        }
        // With one file alone, this replaces the old one: who reads that still has it.
        rename(&fresh, name)?;
        self.file = file;
        Ok(())
    }
}

impl Log {
    /// Opens the log, if there is to be one. Without one, writes do nothing.
    pub(crate) fn open(stdio: &Stdio) -> Result<Self> {
        let open = |path: &PathBuf| {
            let directory = stdio.log_directory.as_deref().or(path.parent()).unwrap_or(path);
            Target::open(path, directory)
        };
        let target = stdio.log.as_ref().map(open).transpose()?;
        Ok(Self { target, rotation: stdio.rotation, lost: Lost::default() })
    }

    /// Goes on in a new file of the same name.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        if let Some(target) = &mut self.target {
            // If this fails the old file stays in use, so that nothing is lost.
            target.file = open(&target.path, &target.directory)?;
            self.lost.torn = false;
        }
        Ok(())
    }

    /// Appends whole records.
    pub(crate) fn write(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            let (fitting, rest) = records.split_at(self.make_room(records));
            self.append(fitting);
            records = rest;
        }
    }

    /// How many bytes of `records` belong to the file, which is a new one if the old one was full.
    fn make_room(&mut self, records: &[u8]) -> usize {
        let (Some(target), Some(rotation)) = (&mut self.target, self.rotation) else {
            return records.len();
        };
        // A file whose size is not known cannot be written to either.
        let length = |file: &File| file.metadata().map_or(0, |found| found.len());
        if length(&target.file) >= rotation.max_bytes && target.rotate(rotation.max_files).is_ok() {
            self.lost.torn = false;
        }
        // If that has failed, the old one takes them, so that nothing is lost.
        match rotation.max_bytes.checked_sub(length(&target.file)) {
            None | Some(0) => records.len(),
            Some(left) => fitting(records, left),
        }
    }

    /// Appends whole records with one write(2), so that no line is torn apart when the file is
    /// renamed and reopened.
    fn append(&mut self, records: &[u8]) {
        let Some(Target { file, .. }) = &mut self.target else { return };
        if self.lost.records > 0 {
            if let Err(cut) = append(file, self.lost.line(&rfc3339(now())).as_bytes()) {
                return self.lost.add(count(records), &cut);
            }
            self.lost = Lost::default();
        }
        if let Err(cut) = append(file, records) {
            self.lost.add(count(&records[cut.written..]), &cut);
        }
    }
}

/// The length of the first records that reach over `left` bytes together; of all of them if they
/// do not.
fn fitting(records: &[u8], left: u64) -> usize {
    let at = usize::try_from(left).unwrap_or(usize::MAX).min(records.len());
    let end = records[at.saturating_sub(1)..].iter().position(|byte| *byte == b'\n');
    end.map_or(records.len(), |end| at.saturating_sub(1) + end + 1)
}

impl Lost {
    fn add(&mut self, records: usize, cut: &Cut) {
        self.records += records;
        self.why = cut.error.to_string();
        self.torn |= cut.torn;
    }

    fn line(&self, time: &str) -> String {
        let (end, lines) =
            (if self.torn { "\n" } else { "" }, if self.records == 1 { "line" } else { "lines" });
        format!("{end}{time} stderr F berth: {} {lines} lost here: {}\n", self.records, self.why)
    }
}

/// A write that ended early.
#[derive(Debug)]
struct Cut {
    /// How many bytes of whole records are in the file all the same.
    written: usize,
    error: io::Error,
    torn: bool,
}

/// Appends `records`. If one does not fit, the part of it that did is cut off again.
fn append(file: &mut File, records: &[u8]) -> std::result::Result<(), Cut> {
    let mut written = 0;
    while written < records.len() {
        match file.write(&records[written..]) {
            Ok(0) => return Err(cut(file, &records[..written], io::ErrorKind::WriteZero.into())),
            Ok(length) => written += length,
            // A signal came before anything was written.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cut(file, &records[..written], error)),
        }
    }
    Ok(())
}

fn cut(file: &File, written: &[u8], error: io::Error) -> Cut {
    let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let part = (written.len() - whole) as u64;
    let shortened = || file.set_len(file.metadata()?.len().saturating_sub(part));
    Cut { written: whole, error, torn: part > 0 && shortened().is_err() }
}

fn count(records: &[u8]) -> usize {
    records.iter().filter(|byte| **byte == b'\n').count()
}

/// Opens the log, and makes the directories that are missing.
///
/// A pod that has the log directory as a volume can put links there, symbolic and hard ones, so
/// that root would write to another file of the host. So from the pod's directory on no link is
/// followed, and a file with a second name is left alone (CVE-2025-0750). The directories above are
/// the host's own, and may have links.
fn open(path: &Path, directory: &Path) -> Result<File> {
    let (at, name) = parent(path, directory)?;
    open_in(&at, name, path)
}

/// The directory of the log, and the log's name in it.
fn parent<'a>(path: &'a Path, directory: &Path) -> Result<(OwnedFd, &'a OsStr)> {
    let above = directory.parent().unwrap_or(Path::new("/"));
    let below =
        path.strip_prefix(above).map_err(|_| failure("not in the pod's log directory:", path))?;
    fs::create_dir_all(above).step_on("make directory", above)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, above, flags, Mode::empty()).step_on("open directory", above)?;
    for part in below.parent().into_iter().flat_map(Path::components) {
        match mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).step_on("make the directory of log", path),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = openat2(&at, part.as_os_str(), flags, Mode::empty(), resolve)
            .map_err(|errno| refused(errno, path))?;
    }
    let name = below.file_name().ok_or_else(|| failure("not a log file:", path))?;
    Ok((at, name))
}

/// Opens the file `name` of the log at `path`.
fn open_in(at: &OwnedFd, name: &OsStr, path: &Path) -> Result<File> {
    // O_NONBLOCK: opening a FIFO that nobody reads would block.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = openat(at, name, flags, Mode::from_raw_mode(0o640))
        .map_err(|errno| refused(errno, path))?;
    let stat = fstat(&file).step_on("stat log", path)?;
    let is_own = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1;
    if is_own {
        Ok(File::from(file))
    } else {
        Err(failure("not a regular file with one name:", path))
    }
}

fn refused(errno: Errno, path: &Path) -> Failure {
    match errno {
        Errno::LOOP => failure("a link in the pod's log directory is not followed:", path),
        errno => Failure { errno: errno.raw_os_error(), ..failure("open log", path) },
    }
}

/// Turns the bytes of one stream into records of the log.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// The line that has no end yet; at most `MAX_LINE` bytes.
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Appends to `out` one record for every line that `bytes` ends or fills.
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
                // A terminal ends its lines with CR and LF.
                if self.partial.last() == Some(&b'\r') {
                    self.partial.pop();
                }
                self.record(time, 'F', out);
            }
        }
    }

    /// Appends the last line of a stream that has ended, if it has no newline.
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

/// The time, in nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_file_takes_records_until_it_is_full() {
        let records = b"aaa\nbb\nc\n";
        for (left, expected) in [(1, 4), (4, 4), (5, 7), (7, 7), (8, 9), (9, 9), (100, 9)] {
            assert_eq!(fitting(records, left), expected, "{left}");
        }
    }

    #[test]
    fn a_full_log_goes_on_in_a_new_file_and_loses_nothing_but_the_oldest() {
        let directory = std::env::temp_dir().join(format!("berth-log-{}", std::process::id()));
        let path = directory.join("log");
        let rotation = Some(LogRotation { max_bytes: 20, max_files: 3 });
        let stdio = Stdio { log: Some(path.clone()), rotation, ..Stdio::default() };
        let mut log = Log::open(&stdio).unwrap();
        let records = |from: u32, to: u32| -> String {
            (from..to).map(|number| format!("record {number}\n")).collect()
        };
        let read = |end: &str| fs::read_to_string(directory.join(format!("log{end}"))).ok();
        // In one write, in several, and by another shim.
        log.write(records(0, 7).as_bytes());
        assert_eq!(read(""), Some(records(6, 7)));
        assert_eq!((read(".1"), read(".2")), (Some(records(3, 6)), Some(records(0, 3))));
        log.write(records(7, 9).as_bytes());
        let mut log = Log::open(&stdio).unwrap();
        log.write(records(9, 10).as_bytes());
        assert_eq!((read(""), read(".1")), (Some(records(9, 10)), Some(records(6, 9))));
        assert_eq!((read(".2"), read(".3")), (Some(records(3, 6)), None));
        // One file alone begins anew.
        log.rotation = Some(LogRotation { max_bytes: 1, max_files: 1 });
        log.write(records(0, 2).as_bytes());
        assert_eq!((read(""), read(".1")), (Some(records(1, 2)), Some(records(6, 9))));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_lost_is_said_in_a_record_of_its_own() {
        let lost = |records, torn| Lost { records, why: "disk full".into(), torn }.line("T");
        assert_eq!(lost(1, false), "T stderr F berth: 1 line lost here: disk full\n");
        assert_eq!(lost(17, true), "\nT stderr F berth: 17 lines lost here: disk full\n");
    }

    #[test]
    fn long_lines_are_cut_into_partial_records() {
        let line = vec![b'x'; 2 * MAX_LINE + 5];
        let text = records(&[&line, b"\n"]);
        let lengths: Vec<(usize, bool)> = text
            .lines()
            .map(|line| (line.len() - "T stderr F ".len(), line.contains(" P ")))
            .collect();
        assert_eq!(lengths, [(MAX_LINE, true), (MAX_LINE, true), (5, false)]);
        let exact = records(&[&line[..MAX_LINE], b"\n"]);
        assert_eq!(exact.lines().count(), 1, "a line of just the limit is whole");
    }
}
