//! What a shim leaves behind. A record is replaced by one rename. A file that a crash has cut short
//! is reported as damaged: never trusted, and never a panic.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::OnceLock,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How a launch ended: one line of JSON on the launcher's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The program runs as this process.
    Pid(u32),
    /// A step failed, and nothing of the container is left.
    Error(Failure),
}

/// A step of a launch that may take long. The starting process has it as its name
/// (proc_pid_comm(5), at most 15 bytes) until it runs its program, so that the daemon can look at
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Opening the source of the mount with this index in the spec.
    Mount(usize),
    /// Copying files into a volume of the image: how many so far.
    Copy(usize),
    /// Labelling the files of a mount: how many so far.
    Label(usize),
    /// Waiting for a hook: for how many seconds so far.
    Hook(usize),
}

impl Stage {
    /// The stage that a process has as its name, if it has one.
    pub fn parse(name: &str) -> Option<Self> {
        let (stage, number) = name.trim().split_once(' ')?;
        let number = number.parse().ok()?;
        match stage {
            "mount" => Some(Self::Mount(number)),
            "copy" => Some(Self::Copy(number)),
            "label" => Some(Self::Label(number)),
            "hook" => Some(Self::Hook(number)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mount(index) => write!(f, "mount {index}"),
            Self::Copy(count) => write!(f, "copy {count}"),
            Self::Label(count) => write!(f, "label {count}"),
            Self::Hook(seconds) => write!(f, "hook {seconds}"),
        }
    }
}

/// `started.json`: the program runs, or has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub pid: u32,
    /// In clock ticks since boot (proc_pid_stat(5), field 22). With the pid it names one process
    /// until the next boot.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub user: ResolvedUser,
}

/// The ids of the first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, with `gid`.
    pub groups: Vec<u32>,
}

/// `exit.json`: the container has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    pub end: End,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Whether the kernel has killed a process of the cgroup because memory was short.
    pub oom: bool,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The program exited with this code.
    Code(i32),
    /// A signal with this number killed the program.
    Signal(i32),
    /// The program never ran.
    NotStarted(Failure),
    /// The shim was killed, so nobody knows how the program ended.
    ShimLost,
    /// The machine was started again.
    Reboot,
    /// It has ended, and the record that says how is damaged. Older daemons take this for
    /// `ShimLost`, which has the same code.
    RecordLost,
}

impl End {
    /// The exit code, as shells and the kubelet know it: 128 + signal; 128 if the program never
    /// ran; 137 if nobody knows how it ended; 255 after a reboot.
    pub fn code(&self) -> i32 {
        match self {
            End::Code(code) => *code,
            End::Signal(signal) => 128 + signal,
            End::NotStarted(_) => 128,
            End::ShimLost | End::RecordLost => 137,
            End::Reboot => 255,
        }
    }
}

/// The step that failed, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done, for example `execve` or `mount overlay on`.
    pub step: String,
    /// What it was done to: a path or a name. May be empty.
    #[serde(default)]
    pub path: String,
    /// Linux error number; 0 if no system call failed: then `step` is the whole reason.
    pub errno: i32,
    /// Records and replies of older shims do not say.
    #[serde(default)]
    pub fault: Fault,
}

/// The step in which a process becomes its program, whose name is the failure's path. An error
/// number of EISDIR says that it is a directory, for which execve(2) itself has EACCES.
pub const EXECUTE: &str = "execve";
/// The step in which a process enters its working directory, which is the failure's path.
pub const ENTER_DIRECTORY: &str = "chdir to";
/// The steps in which a process looks for its user and its groups, whose name is the failure's path.
pub const UNKNOWN_USER: &str = "no such user in /etc/passwd of the image:";
pub const UNKNOWN_GROUP: &str = "no such group in /etc/group of the image:";

/// What has to change before a failed step can succeed. The daemon derives the gRPC code from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request or the image: it would fail in the same way on every node.
    Request,
    /// The node, or nobody knows.
    #[default]
    Node,
}

impl Failure {
    /// A failure of the node that no system call reported.
    pub fn of_node(step: impl Into<String>) -> Self {
        Self { step: step.into(), path: String::new(), errno: 0, fault: Fault::Node }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.step)?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What a read has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    Absent,
    /// A file, but not what was written: the machine lost power before the data was on disk, or
    /// something else was put in its place.
    Damaged,
    Record(T),
}

impl<T> Found<T> {
    /// The record, if it is there and whole.
    pub fn record(self) -> Option<T> {
        match self {
            Found::Record(record) => Some(record),
            Found::Absent | Found::Damaged => None,
        }
    }
}

/// Called before each access to a record, if somebody has set it. The debug builds of berthd find out
/// in this way whether a thread that serves requests is about to wait for the disk.
pub static BEFORE_ACCESS: OnceLock<fn()> = OnceLock::new();

fn before_access() {
    if let Some(check) = BEFORE_ACCESS.get() {
        check();
    }
}

/// The longest record, in bytes. A longer file was not written by berth.
const MAX_RECORD: u64 = 64 << 20;

/// Reads a record.
///
/// # Errors
/// Only those that are not about its contents, such as EIO or EMFILE.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Found<T>> {
    Ok(match read_bytes(path)? {
        // JSON that is cut short does not parse, so a file that is too long is damaged as well.
        Found::Record(bytes) => {
            serde_json::from_slice(&bytes).map_or(Found::Damaged, Found::Record)
        }
        Found::Absent => Found::Absent,
        Found::Damaged => Found::Damaged,
    })
}

/// Reads the file at `path` as it is, as far as a record may be long. Only what is no file is
/// damage here.
///
/// # Errors
/// As `read`.
pub fn read_bytes(path: &Path) -> io::Result<Found<Vec<u8>>> {
    let file = match open(path)? {
        Found::Record(file) => file,
        Found::Absent => return Ok(Found::Absent),
        Found::Damaged => return Ok(Found::Damaged),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(Found::Record(bytes))
}

/// Opens the regular file at `path` for reading. Anything else that is there is damage, and is not
/// opened: a FIFO would block until somebody writes to it, and a link would lead elsewhere.
pub fn open(path: &Path) -> io::Result<Found<File>> {
    before_access();
    // Between this and the open something else could take the name. Only root writes here, so this
    // guards against damage and not against an attacker.
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => File::open(path).map(Found::Record),
        Ok(_) => Ok(Found::Damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Absent),
        Err(error) => Err(error),
    }
}

/// Replaces `path` by one rename, so that a reader finds the old record or the new one. Not
/// durable: after a power loss it may be absent or damaged.
///
/// # Errors
/// Of the file system. Nothing is left of the new record then.
pub fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, record, |_| Ok(()))
}

/// Writes a record into a directory that nobody reads before it is complete, so that the record need
/// not be renamed.
///
/// # Errors
/// Of the file system; part of the record may be left.
pub fn write_new<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    before_access();
    create_private(path)?.write_all(&serde_json::to_vec(record)?)
}

/// As `write`, of something that is not JSON.
///
/// # Errors
/// As `write`.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_bytes(path, bytes, |_| Ok(()))
}

/// As `write`, and once this has returned, a power loss takes neither the contents nor the name. A
/// power loss before that leaves the old record, or the new one, and never a damaged one.
///
/// This waits for the disk. It is for records that cannot be made again: how a container ended.
///
/// # Errors
/// As `write`.
pub fn write_durable<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    // The contents before the name: file systems that allocate blocks late (ext4, XFS) write the
    // name first otherwise, and a power loss leaves an empty file in the place of the old record.
    replace(path, record, File::sync_all)?;
    let synced = sync_parent(path);
    if synced.is_err() {
        // The caller will keep the record elsewhere, and one place must not contradict the other.
        let _ = fs::remove_file(path);
    }
    synced
}

/// Makes a record durable that was written without that. Cheap where it is on the disk already.
/// There is nothing to be done for one that is absent, or no file.
///
/// # Errors
/// The disk cannot be written.
pub fn sync(path: &Path) -> io::Result<()> {
    let Found::Record(file) = open(path)? else { return Ok(()) };
    file.sync_all()?;
    sync_parent(path)
}

/// Syncs the directory of `path`, so that a power loss changes nothing about whether that name is
/// there: syncing a file does not do that (fsync(2)).
///
/// # Errors
/// The disk cannot be written.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Creates a file that only root can read: what a container runs, and with what environment, may
/// hold secrets.
pub fn create_private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes the record under another name, runs `settle` on that file, and renames it.
fn replace<T: Serialize>(
    path: &Path,
    record: &T,
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    replace_bytes(path, &serde_json::to_vec(record)?, settle)
}

fn replace_bytes(
    path: &Path,
    bytes: &[u8],
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    before_access();
    let tmp = path.with_extension("tmp");
    let written =
        write_file(&tmp, bytes).and_then(|file| settle(&file)).and_then(|()| rename(&tmp, path));
    if written.is_err() {
        // On a full disk the room that half a record takes is missing elsewhere.
        let _ = fs::remove_file(&tmp);
    }
    written
}

/// Renames the file `from` to `to`, in the place of whatever has that name.
///
/// # Errors
/// Of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        // A directory in the place of a record is damage. rename(2) does not replace it by a file,
        // so that as long as it is there no record could be written.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            fs::remove_dir_all(to)?;
            fs::rename(from, to)
        }
        renamed => renamed,
    }
}

/// Removes a record, or whatever has its name. Success when nothing is there.
///
/// # Errors
/// Of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = create_private(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_the_kubelet_knows() {
        let failure = Failure {
            step: "execve".into(),
            path: "/bin/x".into(),
            errno: 2,
            fault: Fault::Request,
        };
        for (end, code) in [
            (End::Code(3), 3),
            (End::Signal(9), 137),
            (End::NotStarted(failure), 128),
            (End::ShimLost, 137),
            (End::Reboot, 255),
            (End::RecordLost, 137),
        ] {
            assert_eq!(end.code(), code, "{end:?}");
        }
    }

    #[test]
    fn stages_are_read_back_from_a_name() {
        for stage in [Stage::Mount(12), Stage::Copy(123_456_789)] {
            assert_eq!(Stage::parse(&format!("{stage}\n")), Some(stage));
            assert!(stage.to_string().len() <= 15);
        }
        assert_eq!(Stage::parse("berth-shim\n"), None);
    }

    #[test]
    fn a_record_that_was_cut_short_is_damaged_and_not_an_error() {
        let dir = std::env::temp_dir().join(format!("berth-record-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("exit.json");
        assert_eq!(read::<Exited>(&path).unwrap(), Found::Absent);
        let exited = Exited { end: End::Code(0), at: 1, oom: false };
        write_durable(&path, &exited).unwrap();
        assert_eq!(read::<Exited>(&path).unwrap(), Found::Record(exited));
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(read::<Exited>(&path).unwrap(), Found::Damaged, "{length} bytes");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_file_is_damaged_and_never_waited_for() {
        let dir = std::env::temp_dir().join(format!("berth-record-kinds-{}", std::process::id()));
        fs::create_dir_all(dir.join("directory")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join("link")).unwrap();
        std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        assert!(
            std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success()
        );
        for name in ["directory", "link", "socket", "fifo"] {
            assert_eq!(read::<Exited>(&dir.join(name)).unwrap(), Found::Damaged, "{name}");
            // And replaced by the record that belongs there.
            let exited = Exited { end: End::Code(0), at: 1, oom: false };
            write(&dir.join(name), &exited).unwrap();
            assert_eq!(read::<Exited>(&dir.join(name)).unwrap(), Found::Record(exited), "{name}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn failures_of_older_shims_are_the_nodes() {
        let old = r#"{"step":"execve","path":"/bin/x","errno":2}"#;
        assert_eq!(serde_json::from_str::<Failure>(old).unwrap().fault, Fault::Node);
        let new = r#"{"step":"execve","path":"/bin/x","errno":2,"fault":"request"}"#;
        assert_eq!(serde_json::from_str::<Failure>(new).unwrap().fault, Fault::Request);
    }

    #[test]
    fn failures_read_as_sentences() {
        let failure = Failure {
            step: "execve".into(),
            path: "/bin/x".into(),
            errno: 2,
            fault: Fault::Request,
        };
        assert_eq!(failure.to_string(), "execve /bin/x: No such file or directory (os error 2)");
        assert_eq!(
            Failure {
                step: "no such user".into(),
                path: "bob".into(),
                errno: 0,
                fault: Fault::Request
            }
            .to_string(),
            "no such user bob"
        );
    }
}
