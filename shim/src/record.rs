//! What a shim leaves behind. A record is replaced by one rename and read with tolerance: a file that a crash cut short is
//! reported as such, never trusted and never a panic.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One line on the launcher's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Pid(u32),
    Error(Failure),
}

/// What the container's first process does that may take long, as its name (proc_pid_comm(5), 15 bytes) until it runs its program:
/// to be looked at, and no cost when nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Opens the source of the mount with this index in the spec.
    Mount(usize),
    /// Has copied so many files into the volumes of the image.
    Copy(usize),
    /// Has labelled so many files of the container's mounts.
    Label(usize),
    /// Has waited so many seconds for a hook.
    Hook(usize),
}

impl Stage {
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

/// `started.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    pub pid: u32,
    /// Clock ticks since boot, field 22 of proc_pid_stat(5): with the pid it names one process for ever.
    pub start_time: u64,
    pub boot_id: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub user: ResolvedUser,
}

/// The ids that the first process got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// `exit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    pub end: End,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The kernel killed a process of the cgroup for want of memory.
    pub oom: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Code(i32),
    Signal(i32),
    /// The program never ran.
    NotStarted(Failure),
    /// The shim was killed; how the program ended is not known.
    ShimLost,
    Reboot,
}

impl End {
    /// The exit code as shells and the kubelet know it: 128 + signal, 128 not started, 137 killed with its shim, 255 unknown.
    pub fn code(&self) -> i32 {
        match self {
            End::Code(code) => *code,
            End::Signal(signal) => 128 + signal,
            End::NotStarted(_) => 128,
            End::ShimLost => 137,
            End::Reboot => 255,
        }
    }
}

/// The step that failed, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub step: String,
    #[serde(default)]
    pub path: String,
    /// Linux error number; 0 when `step` says it all.
    pub errno: i32,
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

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    Absent,
    /// There, but not what was written: the machine lost power before the data was on disk.
    Damaged,
    Record(T),
}

impl<T> Found<T> {
    pub fn record(self) -> Option<T> {
        match self {
            Found::Record(record) => Some(record),
            Found::Absent | Found::Damaged => None,
        }
    }
}

/// Reads a record; only errors that are not about its content are errors.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Found<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).map_or(Found::Damaged, Found::Record)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Absent),
        Err(error) => Err(error),
    }
}

/// Replaces `path` by one rename. Not durable: after a power loss it may be absent or damaged.
pub fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, record, false)
}

/// As `write`, and the record is on disk when this returns.
pub fn write_durable<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, record, true)
}

fn replace<T: Serialize>(path: &Path, record: &T, durable: bool) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(&tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_the_kubelet_knows() {
        let failure = Failure { step: "execve".into(), path: "/bin/x".into(), errno: 2 };
        for (end, code) in [
            (End::Code(3), 3),
            (End::Signal(9), 137),
            (End::NotStarted(failure), 128),
            (End::ShimLost, 137),
            (End::Reboot, 255),
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
    fn failures_read_as_sentences() {
        let failure = Failure { step: "execve".into(), path: "/bin/x".into(), errno: 2 };
        assert_eq!(failure.to_string(), "execve /bin/x: No such file or directory (os error 2)");
        assert_eq!(
            Failure { step: "no such user".into(), path: "bob".into(), errno: 0 }.to_string(),
            "no such user bob"
        );
    }
}
