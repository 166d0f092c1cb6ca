//! The limits of a process that are its own and not its cgroup's: rlimits and the OOM score.

use std::fs;

use berth_shim::spec::{Process, Rlimit, RlimitKind};
use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use crate::error::{Result, Step};

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

/// Sets a limit, and returns what was set. A hard limit above the daemon's own needs
/// CAP_SYS_RESOURCE (setrlimit(2)): without it, as when the daemon runs in a container, the limit
/// is as high as the daemon's.
pub(crate) fn set_limit(limit: &Rlimit) -> Result<Rlimit> {
    let kind = match limit.kind {
        RlimitKind::Core => Resource::RLIMIT_CORE,
        RlimitKind::Nofile => Resource::RLIMIT_NOFILE,
        RlimitKind::Nproc => Resource::RLIMIT_NPROC,
    };
    match setrlimit(kind, limit.soft, limit.hard) {
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(kind).step("getrlimit")?;
            let hard = hard.min(limit.hard);
            let limit = Rlimit { soft: limit.soft.min(hard), hard, ..*limit };
            setrlimit(kind, limit.soft, hard).step("setrlimit").map(|()| limit)
        }
        result => result.step("setrlimit").map(|()| *limit),
    }
}
