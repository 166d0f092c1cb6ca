//! Launches `berth-shim` and speaks its protocol.

use std::{
    collections::HashMap,
    fs,
    io::{IoSlice, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use berth_shim::{
    layout,
    protocol::{self, Answer, Call, MAX_PACKET, Packet, Request},
    record::{Failure, Report, Stage},
};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket},
    },
};
use rustix::fs::{FlockOperation, flock};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
    sync::{oneshot, watch},
};

/// A sealed copy of the shim's executable, made once: what runs as root beside a container cannot be overwritten from inside it
/// (CVE-2019-5736), and a package upgrade does not change it under a running daemon.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    memfd: Arc<OwnedFd>,
}

impl Program {
    /// Copies the executable at `path`.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let memfd =
            memfd_create("berth-shim", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).context("memfd_create")?;
        let mut file = fs::File::from(memfd);
        file.write_all(&bytes).context("copy berth-shim")?;
        let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("seal the copy of berth-shim")?;
        // Executed through a read-only descriptor: the kernel refuses one that is open for writing.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let memfd = fs::File::open(path).context("reopen the copy of berth-shim")?;
        Ok(Self { memfd: Arc::new(memfd.into()) })
    }

    /// Where it is looked for: beside the daemon's own executable.
    pub(crate) fn path() -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("find own executable")?;
        Ok(own.with_file_name("berth-shim"))
    }

    /// `berth-shim pin`: the namespaces of `pin.json` in `dir`.
    pub(crate) async fn pin(&self, dir: &Path) -> anyhow::Result<()> {
        self.command("pin", dir, || None).await.map(drop)
    }

    /// `berth-shim run`: the pid of the container's first process. A launch whose `stage` does not change is given up.
    pub(crate) async fn run(&self, dir: &Path, stage: impl Fn() -> Option<Stage>) -> anyhow::Result<u32> {
        self.command("run", dir, stage).await?.ok_or_else(|| anyhow!("the shim said nothing"))
    }

    /// `berth-shim probe`: an error says why pods with files in `dir` cannot have user namespaces.
    pub(crate) async fn probe(&self, dir: &Path) -> anyhow::Result<()> {
        self.command("probe", dir, || None).await.map(drop)
    }

    /// `berth-shim hold`: a process that does nothing until it is dropped.
    pub(crate) fn hold(&self) -> anyhow::Result<Placeholder> {
        let mut command = self.spawnable("hold");
        let child = command.stdin(Stdio::piped()).kill_on_drop(true).spawn().context("launch berth-shim hold")?;
        Ok(Placeholder { child })
    }

    fn spawnable(&self, verb: &str) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.memfd.as_raw_fd()));
        command.arg0("berth-shim").arg(verb).env_clear().current_dir("/");
        command
    }

    async fn command(&self, verb: &str, dir: &Path, stage: impl Fn() -> Option<Stage>) -> anyhow::Result<Option<u32>> {
        let during = || format!("launch berth-shim {verb}");
        let mut command = self.spawnable(verb);
        command.arg("--dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().with_context(during)?;
        let output = with_progress(child.wait_with_output(), stage).await?.with_context(during)?;
        match output.stdout.split(|byte| *byte == b'\n').next().filter(|line| !line.is_empty()) {
            None if output.status.success() => Ok(None),
            None => bail!("berth-shim {verb} ended with {}", output.status),
            Some(line) => match serde_json::from_slice(line).context("read the shim's report")? {
                Report::Pid(pid) => Ok(Some(pid)),
                Report::Error(failure) => Err(failure.into()),
            },
        }
    }
}

/// The process of `hold`.
#[derive(Debug)]
pub(crate) struct Placeholder {
    child: Child,
}

impl Placeholder {
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("it ended already")
    }
}

/// How long a launch may make no progress: most likely it waits for a filesystem that does not answer.
const STUCK: Duration = Duration::from_secs(30);

/// A launch that was given up, and where it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stuck(pub Option<Stage>);

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no progress within {} s", STUCK.as_secs())
    }
}

impl std::error::Error for Stuck {}

async fn with_progress<T>(launch: impl Future<Output = T>, stage: impl Fn() -> Option<Stage>) -> Result<T, Stuck> {
    let mut launch = std::pin::pin!(launch);
    let mut seen = None;
    loop {
        match tokio::time::timeout(STUCK / 2, &mut launch).await {
            Ok(output) => return Ok(output),
            Err(_) => match stage() {
                now if seen == Some(now) => return Err(Stuck(now)),
                now => seen = Some(now),
            },
        }
    }
}

/// Whether a shim keeps the container of `dir`: it holds the lock for as long as it lives.
pub(crate) fn is_alive(dir: &Path) -> std::io::Result<bool> {
    match fs::File::open(dir.join(layout::LOCK)) {
        Ok(file) => Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns once no shim holds the lock of `dir`.
pub(crate) async fn await_end(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(layout::LOCK);
    let waiting = tokio::task::spawn_blocking(move || {
        let file = fs::File::open(&path)?;
        Ok(flock(&file, FlockOperation::LockShared)?)
    });
    match waiting.await? {
        Err(error) if std::io::Error::kind(&error) == std::io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("wait for the shim of {}", dir.display())),
    }
}

/// Waits for a pin of the pod of `dir` that outlived its daemon; none begins while the file lives that this returns.
pub(crate) async fn claim_pin(dir: &Path) -> anyhow::Result<Option<fs::File>> {
    let path = dir.join(layout::PIN);
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    let locking = move || match flock(&file, FlockOperation::LockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(errno) => Err(errno),
    };
    tokio::task::spawn_blocking(locking).await?.with_context(|| format!("lock {}", path.display()))
}

/// Kills what the shim of `dir` keeps, if it lives, and waits until it has left.
pub(crate) async fn end(dir: &Path, socket_dir: &Path) -> anyhow::Result<()> {
    while is_alive(dir)? {
        match Connection::open(socket_dir).await {
            Ok(connection) => {
                // An error is of a shim that has just left, or of a process that has.
                let _ = connection.call(Call::Signal { exec: None, signal: nix::libc::SIGKILL }, &[]).await;
                return await_end(dir).await;
            }
            // A launch that outlived its daemon and does not listen yet.
            Err(_) => tokio::time::sleep(LAUNCHING).await,
        }
    }
    Ok(())
}

/// Between two looks at a shim that is about to listen.
pub(crate) const LAUNCHING: Duration = Duration::from_millis(2);

/// A conversation with one living shim.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Mutex<Pending>>,
    gone: watch::Receiver<bool>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    replies: HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>,
    execs: HashMap<String, oneshot::Sender<i32>>,
}

impl Connection {
    /// Connects to `shim.sock` in `directory`.
    pub(crate) async fn open(directory: &Path) -> anyhow::Result<Self> {
        let at = fs::File::open(directory).with_context(|| format!("open {}", directory.display()))?;
        // A socket address holds 108 bytes: the directory goes by descriptor.
        let path = format!("/proc/self/fd/{}/{}", at.as_raw_fd(), layout::SOCKET);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).context("socket")?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)
            .with_context(|| format!("connect to the shim at {}", directory.display()))?;
        // Its successor is unsafe for the sake of types that lie about their descriptor; an OwnedFd does not.
        #[allow(deprecated)]
        let socket = Arc::new(AsyncFd::new(socket).context("watch the shim's socket")?);
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (gone_sender, gone) = watch::channel(false);
        let (reader, shared) = (socket.clone(), pending.clone());
        tokio::spawn(async move {
            read_packets(&reader, &shared).await;
            // Everyone who still waits learns it from the dropped channel.
            *lock(&shared) = Pending::default();
            gone_sender.send_replace(true);
        });
        Ok(Self { socket, pending, gone })
    }

    /// Returns once the shim is gone, whether it left or was killed.
    pub(crate) async fn closed(&self) {
        // An error means that the reader is gone, and it leaves last of all.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }

    /// One request and its reply.
    pub(crate) async fn call(&self, call: Call, fds: &[&OwnedFd]) -> anyhow::Result<Answer> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut pending = lock(&self.pending);
            pending.next += 1;
            let id = pending.next;
            pending.replies.insert(id, sender);
            id
        };
        let packet = protocol::encode(&Request { id, call });
        debug_assert!(packet.len() <= MAX_PACKET);
        let raw: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let send = |socket: &OwnedFd| {
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&packet)], control, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(std::io::Error::from)
        };
        loop {
            let mut ready = self.socket.writable().await.context("wait for the shim")?;
            if let Ok(result) = ready.try_io(|socket| send(socket.get_ref())) {
                result.context("send to the shim")?;
                break;
            }
        }
        Ok(receiver.await.map_err(|_| anyhow!("the shim left before it answered"))??)
    }

    /// The exit code of an exec, to be asked for before the exec is.
    pub(crate) fn exec_exit(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).execs.insert(exec.to_owned(), sender);
        receiver
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands every packet to who waits for it, until end-of-file.
async fn read_packets(socket: &AsyncFd<OwnedFd>, pending: &Mutex<Pending>) {
    let mut buffer = [0; MAX_PACKET];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let read = ready
            .try_io(|socket| nix::unistd::read(socket.get_ref().as_fd(), &mut buffer).map_err(std::io::Error::from));
        let length = match read {
            Ok(Ok(length)) if length > 0 => length,
            Ok(_) => return,
            Err(_) => continue,
        };
        // A packet that cannot be read is from a shim that knows more: the rest still counts.
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
            Err(error) => tracing::warn!(%error, "unreadable packet from a shim"),
        }
    }
}
