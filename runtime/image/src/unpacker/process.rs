//! The daemon's side: starts the process, feeds it, and believes as little of its report as it can.

use std::{
    fs::File,
    io::Read,
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, anyhow};
use berth_base::error::{Error, Kind, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::fcntl_setpipe_size,
};

use super::{
    child::VERB,
    confine::MEMORY,
    finish::finish,
    report::{MAX_REPORT, Report},
};
use crate::{
    digest::{Digest, Hasher},
    source::Source,
    unpack::{Contents, Unpacked},
};

/// glibc's variable (ld.so(8)), and what lets malloc keep all memory: it goes with the process, and
/// most of it is needed again for the next buffer.
const TUNABLES: &str = "GLIBC_TUNABLES";
const KEEP: &str = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824";
/// Capacity of the pipe to the process. The default of 64 KiB is filled and emptied by one chunk,
/// and then the two processes take turns instead of running at once.
const PIPE: usize = 1 << 20;
/// How long the process may take no bytes and say nothing. A disk can be slow, but whoever has taken
/// over the process must not keep a pull waiting for ever.
const STUCK: Timespec = Timespec { tv_sec: 300, tv_nsec: 0 };

/// Starts the processes that unpack layers.
#[derive(Debug, Default)]
pub(crate) struct Unpacker {
    /// A network namespace with nothing in it, made for the first layer. All processes share it:
    /// to make one takes longer than to start a process.
    nowhere: Mutex<Option<File>>,
    /// Whether the log says that this kernel has no Landlock.
    said: AtomicBool,
}

impl Unpacker {
    /// Unpacks a layer into `FILES` in `directory`, which exists and is empty. Reads `source` to
    /// its end. Blocks.
    ///
    /// # Errors
    /// The error of the source; those of `unpack::unpack`; `Internal` if the process was killed.
    pub(crate) fn unpack(&self, source: &mut dyn Source, directory: &Path) -> Result<Unpacked> {
        let mut process = Process::start(directory, self.nowhere()?)?;
        let blob = process.feed(source)?;
        let contents = self.report(&mut process)?;
        // It has ended its work without all of the bytes, and yet says that it succeeded.
        let blob = blob.ok_or_else(|| anyhow!("the layer was not read to its end"))?;
        // From here on it writes no more, whatever it is.
        drop(process);
        finish(directory, &contents.files)?;
        Ok(Unpacked::new(blob, contents))
    }

    fn report(&self, process: &mut Process) -> Result<Contents> {
        let report = process.report()?;
        if !report.has_landlock && !self.said.swap(true, Ordering::Relaxed) {
            tracing::info!("this kernel has no Landlock (Linux 5.19): layers are unpacked without");
        }
        report.into_contents()
    }

    fn nowhere(&self) -> anyhow::Result<File> {
        let mut nowhere = self.nowhere.lock().unwrap_or_else(PoisonError::into_inner);
        if nowhere.is_none() {
            *nowhere = Some(empty_network()?);
        }
        nowhere.as_ref().context("was just made")?.try_clone().context("duplicate a descriptor")
    }
}

/// Makes a network namespace, in which not even the loopback interface is up.
fn empty_network() -> anyhow::Result<File> {
    // unshare(2) is for one thread, so this one ends with it.
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        File::open("/proc/thread-self/ns/net").context("open the network namespace")
    });
    made.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// A process that runs. Dropping it kills it.
struct Process {
    child: Child,
    /// `None` once all of the blob is written.
    blob: Option<ChildStdin>,
    report: ChildStdout,
}

impl Process {
    /// Must be called, and the result be dropped, in the same thread: when that ends, the kernel
    /// kills the process (prctl(2), PR_SET_PDEATHSIG).
    fn start(directory: &Path, network: File) -> anyhow::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("berthd")
            .arg(VERB)
            .arg(std::process::id().to_string())
            .env_clear()
            .env(TUNABLES, KEEP)
            // Its root, as soon as it runs.
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Descriptor 2 is not for messages, see `child`. Others are not inherited.
            .stderr(network)
            .spawn()
            .context("start the process that unpacks")?;
        let blob = child.stdin.take().context("piped")?;
        let report = child.stdout.take().context("piped")?;
        let process = Self { child, blob: Some(blob), report };
        // A smaller pipe is slower, and nothing else.
        let _ = process.blob.as_ref().map(|pipe| fcntl_setpipe_size(pipe, PIPE));
        Ok(process)
    }

    /// Writes the whole blob into the process, and returns its digest. `None` if the process reads
    /// no more, because it has failed.
    ///
    /// # Errors
    /// The error of the source.
    fn feed(&mut self, source: &mut dyn Source) -> Result<Option<Digest>> {
        let Some(pipe) = self.blob.take() else { return Ok(None) };
        rustix::io::ioctl_fionbio(&pipe, true).context("make the pipe not block")?;
        let mut hasher = Hasher::default();
        let fed = loop {
            match source.next() {
                Ok(Some(chunk)) => {
                    hasher.update(&chunk);
                    match write_all(&pipe, &chunk) {
                        Ok(()) => {}
                        Err(Errno::PIPE) => break Ok(None),
                        Err(error) => break Err(stuck(error)),
                    }
                }
                Ok(None) => break Ok(Some(hasher.finish())),
                Err(error) => break Err(error),
            }
        };
        if fed.is_err() {
            // Before the pipe is closed: the process would take that for the end of the blob.
            self.kill();
        }
        fed
    }

    /// Waits for the report.
    ///
    /// # Errors
    /// There is none: the process was killed, or it hangs.
    fn report(&mut self) -> Result<Report> {
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            wait_for(&self.report, PollFlags::IN).map_err(stuck)?;
            match self.report.read(&mut chunk).context("read the report")? {
                0 => break,
                length => text.extend_from_slice(&chunk[..length]),
            }
            if text.len() > MAX_REPORT {
                return Err(Error::precondition("too many directories need attention"));
            }
        }
        let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
            return Err(ended_early(self.child.wait().context("wait for the process")?));
        };
        Ok(serde_json::from_slice(&text[..end]).context("read the report")?)
    }

    fn kill(&mut self) {
        // It fails only if the process has been waited for.
        let _ = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Writes everything into a pipe that does not block.
fn write_all(pipe: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&pipe, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::AGAIN) => wait_for(&pipe, PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until the pipe is ready, or its other end is closed.
///
/// # Errors
/// `ETIMEDOUT` after `STUCK`.
fn wait_for(pipe: impl AsFd, event: PollFlags) -> rustix::io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(&pipe, event)], Some(&STUCK)) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(Errno::TIMEDOUT),
            result => return result.map(drop),
        }
    }
}

fn stuck(error: Errno) -> Error {
    let what = match error {
        Errno::TIMEDOUT => format!("made no progress for {} s", STUCK.tv_sec),
        error => format!("cannot be reached: {error}"),
    };
    Error::new(Kind::Internal, format!("the process that unpacks it {what}"))
}

/// The error for a process that has reported nothing.
fn ended_early(status: ExitStatus) -> Error {
    Error::new(
        Kind::Internal,
        format!(
            "the process that unpacks it ended early ({status}): pull the image again, unless this \
             layer needs more than {} MiB of memory",
            MEMORY >> 20
        ),
    )
}
