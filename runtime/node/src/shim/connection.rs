//! A conversation with one living shim: requests and their replies, and the ends of execs.

use std::{
    collections::HashMap,
    fs,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use berth_base::error::Error;
use berth_shim::{
    layout,
    protocol::{self, Call, MAX_PACKET, Packet, Request, Response},
    record::{Failure, Started},
    version::{self, NoCommonVersion},
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{OnceCell, oneshot, watch},
};

/// How long a shim may take to answer. It is a single thread that waits for nothing but a disk, as
/// when it writes the log.
pub const RESPONSE_LIMIT: Duration = Duration::from_secs(30);

/// A shim did not answer within this time.
#[derive(Clone, Copy, Debug)]
pub struct NoResponse(Duration);

impl std::fmt::Display for NoResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Rounded: of the limit of a request, an earlier question may have used some milliseconds.
        let seconds = (self.0.as_secs_f32() * 10.0).round() / 10.0;
        write!(
            f,
            "the container's shim did not answer within {seconds} s: it is stopped, or waits for a \
             disk"
        )
    }
}

impl std::error::Error for NoResponse {}

/// A connection to a living shim. It ends with the shim or with the daemon, and in the latter case
/// the shim kills all execs that were requested on it.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Mutex<Pending>>,
    /// True once the shim is gone.
    gone: watch::Receiver<bool>,
    /// What it has in common with this daemon, once that was asked.
    version: OnceCell<Result<u32, NoCommonVersion>>,
}

/// What callers wait for. The lock around it is held for a look into the maps only, and never over
/// an await.
#[derive(Debug, Default)]
struct Pending {
    /// The id of the last request.
    next: u64,
    /// Replies, by the id of the request.
    replies: HashMap<u64, oneshot::Sender<Result<Response, Failure>>>,
    /// Exit codes, by the id of the exec.
    execs: HashMap<String, oneshot::Sender<i32>>,
}

impl Connection {
    /// Connects to `shim.sock` in `directory`.
    ///
    /// # Errors
    /// ECONNREFUSED or ENOENT if no shim listens there.
    pub async fn open(directory: &Path) -> anyhow::Result<Self> {
        let at =
            fs::File::open(directory).with_context(|| format!("open {}", directory.display()))?;
        // A socket address holds 108 bytes (unix(7)), and the path may be longer: the kernel finds
        // the directory by descriptor.
        let path = format!("/proc/self/fd/{}/{}", at.as_raw_fd(), layout::SOCKET);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).context("socket")?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)
            .with_context(|| format!("connect to the shim at {}", directory.display()))?;
        // `AsyncFd::new` is deprecated for types that may change their descriptor, and what
        // replaces it is unsafe. An OwnedFd always has the same one.
        #[allow(deprecated)]
        let socket = Arc::new(AsyncFd::new(socket).context("watch the shim's socket")?);
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (gone_sender, gone) = watch::channel(false);
        let (reader, shared) = (socket.clone(), pending.clone());
        tokio::spawn(async move {
            read_packets(&reader, &shared).await;
            // This drops the channels, which tells everyone who still waits.
            *lock(&shared) = Pending::default();
            gone_sender.send_replace(true);
        });
        Ok(Self { socket, pending, gone, version: OnceCell::new() })
    }

    /// Returns when the shim is gone, whether it has exited or was killed.
    pub async fn closed(&self) {
        // An error means that the task above is gone, and it is only after it has sent true.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }

    /// The version of the protocol that the shim and this daemon speak with one another. The shim is
    /// asked once, by the first caller: most containers never have an exec, and a start need not
    /// wait for this.
    ///
    /// # Errors
    /// As `call_within`, and `FailedPrecondition` if there is no such version.
    pub async fn version(&self, limit: Duration) -> anyhow::Result<u32> {
        let asked = self.version.get_or_try_init(async || {
            match self.call_within(limit, Call::Hello, &[]).await? {
                Response::Hello { version, oldest, .. } => {
                    Ok(version::common(oldest.unwrap_or(version)..=version))
                }
                other => bail!("the shim answers a question for its version by {other:?}"),
            }
        });
        let common = asked.await?.clone();
        common.map_err(|none| Error::precondition(none.to_string()).into())
    }

    /// Sends one request with these descriptors, and waits for the reply.
    ///
    /// # Errors
    /// As `call_within`, after `RESPONSE_LIMIT`.
    pub async fn call(&self, call: Call, fds: &[&OwnedFd]) -> anyhow::Result<Response> {
        self.call_within(RESPONSE_LIMIT, call, fds).await
    }

    /// As `call`, with another limit.
    ///
    /// # Errors
    /// `NoResponse`, the shim's `Failure`, or `FailedPrecondition` if the shim has exited.
    pub async fn call_within(
        &self,
        limit: Duration,
        call: Call,
        fds: &[&OwnedFd],
    ) -> anyhow::Result<Response> {
        let (sender, receiver) = oneshot::channel();
        // Registered before the request is sent: the reply may arrive before this task goes on.
        let id = {
            let mut pending = lock(&self.pending);
            pending.next += 1;
            let id = pending.next;
            pending.replies.insert(id, sender);
            id
        };
        let packet = protocol::encode(&Request { id, call });
        debug_assert!(packet.len() <= MAX_PACKET);
        let conversation = async {
            self.send(&packet, fds).await?;
            Ok(receiver
                .await
                .map_err(|_| Error::precondition("the shim exited before it answered"))??)
        };
        match tokio::time::timeout(limit, conversation).await {
            Ok(answered) => answered,
            Err(_) => {
                // A reply that comes after all finds nobody, and is dropped.
                lock(&self.pending).replies.remove(&id);
                Err(NoResponse(limit).into())
            }
        }
    }

    /// Sends one packet, which the kernel takes as a whole or not at all.
    async fn send(&self, packet: &[u8], fds: &[&OwnedFd]) -> anyhow::Result<()> {
        let raw: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            let mut ready = self.socket.writable().await.context("wait for the shim")?;
            if let Ok(result) = ready.try_io(|socket| send_now(socket.get_ref(), packet, control)) {
                return result.map(drop).map_err(lost).context("send to the shim");
            }
        }
    }

    /// The exit code of an exec. To be called before the exec is requested: a short command may
    /// have ended when the reply is read.
    pub fn exec_exit(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).execs.insert(exec.to_owned(), sender);
        receiver
    }
}

/// sendmsg(2) without waiting.
///
/// # Errors
/// EAGAIN if the socket has no room: a shim that is stopped reads nothing.
fn send_now(
    socket: &OwnedFd,
    packet: &[u8],
    control: &[ControlMessage<'_>],
) -> std::io::Result<usize> {
    let parts = [IoSlice::new(packet)];
    // MSG_NOSIGNAL: a shim that has exited must not raise SIGPIPE in the daemon.
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(std::io::Error::from)
}

/// A shim exits when its container has ended, and that is not an internal error.
fn lost(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => {
            Error::precondition("the shim has exited").into()
        }
        _ => error.into(),
    }
}

/// A panic elsewhere leaves the maps whole, so a poisoned lock is no reason to fail.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands every packet to the caller that waits for it, until end-of-file.
async fn read_packets(socket: &AsyncFd<OwnedFd>, pending: &Mutex<Pending>) {
    let mut buffer = [0; MAX_PACKET];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let read = ready.try_io(|socket| {
            nix::unistd::read(socket.get_ref().as_fd(), &mut buffer).map_err(std::io::Error::from)
        });
        let length = match read {
            Ok(Ok(length)) if length > 0 => length,
            Ok(_) => return,
            Err(_) => continue,
        };
        // A packet that cannot be parsed comes from a newer shim. The next one may be understood.
        match protocol::decode(&buffer[..length]) {
            Ok(Packet::Reply { id, result }) => {
                if let Some(waiting) = lock(pending).replies.remove(&id) {
                    let _ = waiting.send(result);
                }
            }
            Ok(Packet::ExecExited { exec, code }) => {
                if let Some(waiting) = lock(pending).execs.remove(&exec) {
                    let _ = waiting.send(code);
                }
            }
            Err(error) => tracing::warn!(%error, "a shim sent a packet that is not understood"),
        }
    }
}

/// How often a launch that has outlived its daemon is looked at.
pub const LAUNCHING: Duration = Duration::from_millis(10);

/// Asks the shim at `socket_dir` what it keeps. Returns only when it says so: a launch that has not
/// come so far does not answer, and a shim that does not know the question has nothing to say.
pub async fn greet(socket_dir: &Path) -> Started {
    loop {
        let asked = async {
            Connection::open(socket_dir).await?.call_within(Duration::MAX, Call::Hello, &[]).await
        };
        match asked.await {
            Ok(Response::Hello { started: Some(started), .. }) => return started,
            Ok(_) => std::future::pending().await,
            Err(_) => tokio::time::sleep(LAUNCHING).await,
        }
    }
}
