//! The limits of a process that are its own and not its cgroup's: rlimits and the OOM score.

use std::fs;

use berth_shim::spec::{Process, Rlimit, RlimitKind, Ulimit};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use crate::error::{Result, Step, failure};

/// Sets how likely the kernel is to kill this process when memory is short
/// (proc_pid_oom_score_adj(5)). To be called while the host's /proc is still there: the container's
/// may be masked or missing.
pub(crate) fn set_oom_score_adj(process: &Process) -> Result<()> {
    let Some(wanted) = process.oom_score_adj else { return Ok(()) };
    let path = "/proc/self/oom_score_adj";
    match fs::write(path, wanted.to_string()) {
        // A value below the current one needs CAP_SYS_RESOURCE. Without it, as in a container, the
        // inherited value is the lowest there is.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result.step_on("write", path),
    }
}

/// Sets all limits of a process, and returns what was set, each kind once. A hard limit above the
/// daemon's own needs CAP_SYS_RESOURCE (setrlimit(2)): without it, as when the daemon runs in a
/// container, the limit is as high as the daemon's.
pub(crate) fn set_all(process: &Process) -> Result<Vec<Ulimit>> {
    let named = |limit: &Rlimit| Ulimit {
        name: match limit.kind {
            RlimitKind::Core => "core",
            RlimitKind::Nofile => "nofile",
            RlimitKind::Nproc => "nproc",
        }
        .to_owned(),
        soft: limit.soft,
        hard: limit.hard,
    };
    let is_replaced = |limit: &Ulimit| process.ulimits.iter().any(|one| one.name == limit.name);
    let defaults = process.rlimits.iter().map(named).filter(|limit| !is_replaced(limit));
    defaults.chain(process.ulimits.iter().cloned()).map(|limit| set_ulimit(&limit)).collect()
}

fn set_ulimit(limit: &Ulimit) -> Result<Ulimit> {
    let kind = KINDS.iter().find(|(name, _)| *name == limit.name);
    let (_, kind) = kind.ok_or_else(|| failure("no such limit:", &limit.name))?;
    let (soft, hard) = set(*kind, limit.soft, limit.hard)?;
    Ok(Ulimit { soft, hard, name: limit.name.clone() })
}

/// All limits of getrlimit(2).
const KINDS: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

fn set(kind: Resource, soft: u64, hard: u64) -> Result<(u64, u64)> {
    match setrlimit(kind, soft, hard) {
        Err(Errno::EPERM) => {
            let (_, own) = getrlimit(kind).step("getrlimit")?;
            let (soft, hard) = (soft.min(own), hard.min(own));
            setrlimit(kind, soft, hard).step("setrlimit").map(|()| (soft, hard))
        }
        result => result.step("setrlimit").map(|()| (soft, hard)),
    }
}
