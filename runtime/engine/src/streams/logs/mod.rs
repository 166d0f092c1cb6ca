//! `docker logs`: a container's log files, which the shim writes in the kubelet's format, as the
//! stream that Docker's clients expect.
//!
//! ```text
//! open     the files, newest first, and their sizes              `files`
//! tail     where the last N records begin, counted from the end  `tail`
//! read     blocks of whole records                               `blocks`
//! record   one record to one frame, or to bytes of a terminal    `record`
//! follow   sleep until inotify(7) tells of more                  `watch`
//! ```
//!
//! The order in which options apply is dockerd's: first `tail` counts records of both streams, then
//! `since` and `until` cut, then a stream that was not asked for is left out.

mod blocks;
mod files;
mod options;
mod record;
mod tail;
mod watch;

use std::{future::Future, io, path::PathBuf, pin::Pin, time::Duration};

use berth_base::{blocking::spawn_blocking, clock};
use bytes::Bytes;
use futures_util::{Stream, stream};

use self::{
    blocks::{Blocks, Progress},
    record::Renderer,
};
pub use self::{
    options::LogOptions,
    watch::{LogWatcher, Watch},
};

/// What a stream needs to go on after the end of the log.
pub struct Follow {
    /// Tells of changes in the log's directory.
    pub watch: Watch,
    /// Resolves when no more will be written. What is in the files then is still sent.
    pub ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("watch", &self.watch).finish_non_exhaustive()
    }
}

/// The log of a container as a client gets it.
#[derive(Debug)]
pub struct LogStream {
    blocks: Blocks,
    follow: Option<Follow>,
    until: Option<i64>,
    /// Nothing more is to come than what is in the files now.
    is_over: bool,
}

impl LogStream {
    /// Opens the log whose current file is at `path`, with the files beside it that were rotated
    /// away, `path.1` being the newest of them. A log without files is an empty one.
    ///
    /// Without `follow` it ends with what is in the files now. With it, the watch must be older
    /// than this call, so that no change is missed.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub async fn open(
        path: PathBuf,
        options: LogOptions,
        follow: Option<Follow>,
    ) -> io::Result<Self> {
        let until = options.until;
        let follows = follow.is_some();
        let opened = spawn_blocking(move || {
            let renderer = Renderer::new(&options);
            Blocks::open(path, options.tail, follows, renderer)
        });
        Ok(Self { blocks: joined(opened.await)?, follow, until, is_over: false })
    }

    /// The next piece of the stream, mostly of 128 KiB and less. `None` at its end.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            // Reading may wait for the disk. One hop to another thread for each 128 KiB costs
            // nothing beside reading them.
            let mut blocks = self.blocks;
            let (blocks, progress) = joined(
                spawn_blocking(move || blocks.next().map(|progress| (blocks, progress))).await,
            )?;
            self.blocks = blocks;
            match progress {
                Progress::Bytes(bytes) => return Ok(Some((bytes, self))),
                Progress::Finished => return Ok(None),
                Progress::Drained if self.is_over => return Ok(None),
                Progress::Drained => {}
            }
            let Some(follow) = &mut self.follow else { return Ok(None) };
            tokio::select! {
                () = follow.watch.changed() => {}
                () = &mut follow.ended => self.is_over = true,
                () = passed(self.until) => self.is_over = true,
            }
        }
    }

    /// This as a stream for the body of a response.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold(self, Self::next)
    }
}

/// Resolves when it is later than `until`, never without one.
async fn passed(until: Option<i64>) {
    let Some(until) = until else { return std::future::pending().await };
    let left = u64::try_from(until.saturating_sub(clock::now())).unwrap_or(0);
    // One more, since a record of exactly that time still belongs to the stream.
    tokio::time::sleep(Duration::from_nanos(left.saturating_add(1))).await;
}

/// The result of work on another thread. It does not panic, and the runtime ends such work only
/// when it ends itself.
fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs::{self, File},
        io::Write,
    };

    use tokio::sync::oneshot;

    use super::*;

    /// A time that differs in its seconds.
    fn time(second: i64) -> String {
        berth_shim::timestamp::rfc3339(second * 1_000_000_000)
    }

    fn line(second: i64, rest: &str) -> String {
        format!("{} {rest}\n", time(second))
    }

    fn all() -> LogOptions {
        LogOptions { stdout: true, stderr: true, ..LogOptions::default() }
    }

    /// Frames in a form that can be read: `1:text` for stdout, `2:text` for stderr.
    fn unframed(mut bytes: &[u8]) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let (payload, rest) = rest.split_at(length);
            frames.push(format!("{}:{}", header[0], String::from_utf8_lossy(payload)));
            bytes = rest;
        }
        frames
    }

    async fn read(path: &std::path::Path, options: LogOptions) -> Vec<u8> {
        let mut stream = LogStream::open(path.to_owned(), options, None).await.unwrap();
        let mut bytes = Vec::new();
        while let Some((chunk, rest)) = stream.next().await.unwrap() {
            bytes.extend_from_slice(&chunk);
            stream = rest;
        }
        bytes
    }

    /// Three files with one record a second, from 1 on.
    fn rotated(directory: &std::path::Path) -> PathBuf {
        let path = directory.join("log");
        let files = [
            ("log.10", line(1, "stdout F one")),
            ("log.2", line(2, "stderr F two") + &line(3, "stdout P thr")),
            ("log", line(4, "stdout F ee") + "garbage\n" + &line(5, "stderr F five")),
        ];
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
        }
        path
    }

    #[tokio::test]
    async fn options_choose_records_in_the_order_of_dockerd() {
        let directory = tempfile::tempdir().unwrap();
        let path = rotated(directory.path());
        let second = 1_000_000_000;
        let cases: [(&str, LogOptions, &[&str]); 9] = [
            ("all", all(), &["1:one\n", "2:two\n", "1:thr", "1:ee\n", "2:five\n"]),
            ("stdout", LogOptions { stderr: false, ..all() }, &["1:one\n", "1:thr", "1:ee\n"]),
            // Docker counts whatever lines there are.
            ("tail", LogOptions { tail: Some(4), ..all() }, &["1:thr", "1:ee\n", "2:five\n"]),
            ("tail 0", LogOptions { tail: Some(0), ..all() }, &[]),
            ("tail counts both streams", LogOptions { tail: Some(1), stderr: false, ..all() }, &[]),
            (
                "a long tail",
                LogOptions { tail: Some(u64::MAX), stdout: false, ..all() },
                &["2:two\n", "2:five\n"],
            ),
            ("since", LogOptions { since: Some(4 * second), ..all() }, &["1:ee\n", "2:five\n"]),
            ("until", LogOptions { until: Some(2 * second), ..all() }, &["1:one\n", "2:two\n"]),
            (
                "tail before since",
                LogOptions { tail: Some(3), since: Some(2 * second), ..all() },
                &["1:ee\n", "2:five\n"],
            ),
        ];
        for (name, options, expected) in cases {
            assert_eq!(unframed(&read(&path, options).await), expected, "{name}");
        }
        assert!(read(&directory.path().join("none"), all()).await.is_empty());
    }

    #[tokio::test]
    async fn records_are_decorated_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = rotated(directory.path());
        let details =
            BTreeMap::from([("a b".to_owned(), "c/d".to_owned()), ("x".into(), "".into())]);
        let options =
            LogOptions { timestamps: true, details: Some(details), tail: Some(1), ..all() };
        let expected = format!("2:{} a+b=c%2Fd,x= five\n", time(5));
        assert_eq!(unframed(&read(&path, options).await), [expected]);
        let options = LogOptions { details: Some(BTreeMap::new()), tail: Some(1), ..all() };
        assert_eq!(unframed(&read(&path, options).await), ["2: five\n"]);
        let tty = LogOptions { tty: true, stderr: false, timestamps: true, tail: Some(3), ..all() };
        assert_eq!(read(&path, tty).await, format!("{} ee\r\n", time(4)).as_bytes());
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_hides_nothing_after_the_first_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, line(1, "stdout F a") + &line(9, "stdout F b") + &line(2, "stdout F c"))
            .unwrap();
        let options = LogOptions { since: Some(5_000_000_000), ..all() };
        assert_eq!(unframed(&read(&path, options).await), ["1:b\n", "1:c\n"]);
    }

    #[tokio::test]
    async fn a_tail_is_found_over_the_borders_of_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let text = "x".repeat(16 << 10);
        let content: String =
            (0..40).map(|second| line(second, &format!("stdout F {second}{text}"))).collect();
        fs::write(&path, content).unwrap();
        for tail in [1, 7, 39, 40, 41] {
            let frames = unframed(&read(&path, LogOptions { tail: Some(tail), ..all() }).await);
            assert_eq!(frames.len() as u64, tail.min(40));
            assert!(frames.last().unwrap().starts_with("1:39x"));
        }
    }

    struct Following {
        chunks: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
        end: oneshot::Sender<()>,
    }

    async fn follow(path: &std::path::Path, options: LogOptions) -> Following {
        let watcher = LogWatcher::start().unwrap();
        let watch = watcher.watch(path.parent().unwrap()).unwrap();
        let (end, ended) = oneshot::channel();
        let ended = Box::pin(async move { ended.await.unwrap_or_default() });
        let follow = Some(Follow { watch, ended });
        let stream = LogStream::open(path.to_owned(), options, follow).await.unwrap();
        let (sender, chunks) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut stream = stream;
            while let Some((bytes, rest)) = stream.next().await.unwrap() {
                let _ = sender.send(bytes);
                stream = rest;
            }
        });
        Following { chunks, end }
    }

    #[tokio::test]
    async fn following_goes_on_over_rotations_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, line(1, "stdout F a")).unwrap();
        let mut following = follow(&path, LogOptions { tail: Some(0), ..all() }).await;
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(line(2, "stdout F b").as_bytes()).unwrap();
        assert_eq!(unframed(&following.chunks.recv().await.unwrap()), ["1:b\n"]);
        // Half a record is none.
        let record = line(3, "stdout F c");
        file.write_all(&record.as_bytes()[..35]).unwrap();
        file.write_all(&record.as_bytes()[35..]).unwrap();
        assert_eq!(unframed(&following.chunks.recv().await.unwrap()), ["1:c\n"]);
        // Two rotations, which may be over before anybody looks.
        file.write_all(line(4, "stdout F d").as_bytes()).unwrap();
        fs::rename(&path, directory.path().join("log.2")).unwrap();
        fs::write(directory.path().join("log.1"), line(5, "stdout F e")).unwrap();
        fs::write(&path, line(6, "stderr F f")).unwrap();
        let mut frames = Vec::new();
        while frames.len() < 3 {
            frames.extend(unframed(&following.chunks.recv().await.unwrap()));
        }
        assert_eq!(frames, ["1:d\n", "1:e\n", "2:f\n"]);
        // What was written before the end is still sent.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(line(7, "stdout F g").as_bytes()).unwrap();
        following.end.send(()).unwrap();
        assert_eq!(unframed(&following.chunks.recv().await.unwrap()), ["1:g\n"]);
        assert_eq!(following.chunks.recv().await, None);
    }

    #[tokio::test]
    async fn following_ends_when_its_time_has_passed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, line(1, "stdout F a")).unwrap();
        let until = Some(clock::now() + 50_000_000);
        let mut following = follow(&path, LogOptions { until, ..all() }).await;
        assert_eq!(unframed(&following.chunks.recv().await.unwrap()), ["1:a\n"]);
        assert_eq!(following.chunks.recv().await, None);
        drop(following.end);
    }
}
