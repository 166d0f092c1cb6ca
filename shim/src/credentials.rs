//! From root to the user of the image, in the one order that works: limits while privileged, groups before uid, capabilities
//! after uid, no_new_privs, and the filter last of all, unless only CAP_SYS_ADMIN may load it.

use std::{
    env,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use berth_shim::{
    record::ResolvedUser,
    spec::{Capabilities, Process, Rlimit, RlimitKind},
};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, execve, setgroups, setresgid, setresuid},
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    error::{Failure, Result, Step, failure},
    passwd::Login,
    seccomp, stdio, sys,
};

/// Highest capability number that a u64 of the contract can name.
const CAPABILITIES: u32 = 64;

/// Written while the host's /proc is still there.
pub(crate) fn set_oom_score_adj(process: &Process) -> Result<()> {
    let Some(wanted) = process.oom_score_adj else { return Ok(()) };
    let path = "/proc/self/oom_score_adj";
    match fs::write(path, wanted.to_string()) {
        // Lowering needs CAP_SYS_RESOURCE: without it the daemon's own value is the lowest there is, and is inherited.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result.step_on("write", path),
    }
}

/// The AppArmor profile or SELinux label that execve(2) changes to. Written while the host's /proc is still there, and after the host's own programs
/// were run.
pub(crate) fn set_label(process: &Process) -> Result<()> {
    if let Some(profile) = &process.apparmor {
        let path = "/proc/self/attr/apparmor/exec";
        fs::write(path, format!("exec {profile}")).step_on("change to AppArmor profile", profile)?;
    }
    if let Some(label) = &process.selinux {
        fs::write("/proc/self/attr/exec", label).step_on("change to SELinux label", label)?;
    }
    Ok(())
}

/// Becomes the program of `process`. Returns only a failure.
pub(crate) fn execute(process: &Process, login: &Login, filter: &[u8]) -> Failure {
    prepare(process, login, filter).map_or_else(|error| error, |()| exec_program(process, login))
}

fn prepare(process: &Process, login: &Login, filter: &[u8]) -> Result<()> {
    let filter = if process.seccomp { filter } else { &[] };
    umask(Mode::from_bits_truncate(0o022));
    for limit in &process.rlimits {
        set_limit(limit)?;
    }
    own_stdio(&login.user);
    if !process.no_new_privileges {
        seccomp::load(filter)?;
    }
    become_user(&login.user, process.capabilities)?;
    enter_directory(&process.cwd)?;
    sys::cloexec_from(3).step("close_range")?;
    sys::default_signals().step("reset signals")?;
    if process.no_new_privileges {
        prctl::set_no_new_privs().step("prctl PR_SET_NO_NEW_PRIVS")?;
        seccomp::load(filter)?;
    }
    Ok(())
}

/// A hard limit above the daemon's own needs CAP_SYS_RESOURCE: without it, as much as is allowed, which is returned.
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

/// Lets the user reopen its pipes and its terminal through /dev/stdout.
fn own_stdio(user: &ResolvedUser) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    stdio::give(&streams, user.uid, user.gid);
    for terminal in streams.into_iter().filter(|fd| rustix::termios::isatty(fd)) {
        // As with pipes, an id without a mapping has to do without.
        let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
        let _ = rustix::fs::fchown(terminal, Some(uid), Some(gid));
    }
}

fn become_user(user: &ResolvedUser, capabilities: Capabilities) -> Result<()> {
    let current = rustix::thread::capabilities(None).step("capget")?.permitted;
    let granted = CapabilitySet::from_bits_retain(capabilities.granted) & current;
    let ambient = CapabilitySet::from_bits_retain(capabilities.ambient) & granted;
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !granted.contains(capability) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // Numbers that this kernel does not know.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.step("drop a capability from the bounding set")?,
            }
        }
    }
    prctl::set_keepcaps(true).step("prctl PR_SET_KEEPCAPS")?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).step("setgroups")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).step("setresgid")?;
    setresuid(uid, uid, uid).step("setresuid")?;
    let sets = CapabilitySets { effective: granted, permitted: granted, inheritable: ambient };
    rustix::thread::set_capabilities(None, sets).step("capset")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient set")?;
    for capability in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).step("raise an ambient capability")?;
    }
    Ok(())
}

/// The kernel answers getcwd(2) with "(unreachable)" for a directory outside the root (CVE-2024-21626).
fn enter_directory(cwd: &Path) -> Result<()> {
    env::set_current_dir(cwd).step_on("chdir to", cwd)?;
    let current = env::current_dir().step_on("getcwd in", cwd)?;
    if current.is_absolute() { Ok(()) } else { Err(failure("working directory is outside the root:", current)) }
}

fn exec_program(process: &Process, login: &Login) -> Failure {
    let mut env = process.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", login.home));
    }
    let c_strings = |strings: &[String]| {
        strings.iter().map(|text| CString::new(text.as_str())).collect::<std::result::Result<Vec<_>, _>>()
    };
    let (Ok(args), Ok(env_c), Some(program)) = (c_strings(&process.args), c_strings(&env), process.args.first()) else {
        return failure("empty command, or a NUL byte in it or in the environment", "");
    };
    let mut error = Errno::ENOENT;
    for candidate in candidates(program, &env) {
        let Ok(path) = CString::new(candidate.into_os_string().into_encoded_bytes()) else { continue };
        match execve(&path, &args, &env_c) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => error = errno,
        }
    }
    Failure { step: "execve".into(), path: program.clone(), errno: error as i32 }
}

/// Where a program may be: itself if it has a slash, else below each directory of PATH.
fn candidates(program: &str, env: &[String]) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![program.into()];
    }
    let path = env
        .iter()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(program))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_the_containers_path() {
        let env = ["A=b".to_owned(), "PATH=/x:/y".to_owned()];
        assert_eq!(candidates("ls", &env), [Path::new("/x/ls"), Path::new("/y/ls")]);
        assert_eq!(candidates("./ls", &env), [Path::new("./ls")]);
        assert!(candidates("ls", &[]).contains(&PathBuf::from("/bin/ls")));
    }
}
