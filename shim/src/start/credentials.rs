//! From root to the user of the image, in the one order that works: rlimits while privileged,
//! groups before the uid, capabilities after it, no_new_privs last but one, and the seccomp filter
//! last of all. Without no_new_privs only CAP_SYS_ADMIN may load a filter, so then it is loaded
//! earlier.

use std::{env, fs, os::fd::BorrowedFd, path::Path};

use berth_shim::{
    record::{ENTER_DIRECTORY, ResolvedUser},
    spec::{Capabilities, Process},
};
use nix::{
    sys::{
        prctl,
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    descriptor::chown_pipes,
    error::{Result, Step, invalid},
    passwd::Login,
    process::limits,
    seccomp::{self, Pass},
    sys,
};

/// How many capabilities a u64 of the contract can name.
const CAPABILITIES: u32 = 64;

/// Gives this process a session keyring (session-keyring(7)) that no other container has. The one
/// it inherits is the daemon's, and with it containers could read each other's keys.
///
/// To be called in the monitor, so that the container's first process and all of its
/// execs share the keyring.
pub(crate) fn renew_keyring() -> Result<()> {
    match sys::new_session_keyring().and_then(|()| sys::close_session_keyring()) {
        // The kernel is built without keys, or a seccomp filter around the daemon forbids them. It
        // forbids them to every container as well then.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) =>
        {
            Ok(())
        }
        // EDQUOT is an error as well: a container must not start with the keyring of others.
        result => {
            result.step("make a session keyring (kernel.keys.root_maxkeys bounds their number)")
        }
    }
}

/// Sets the AppArmor profile or SELinux label that the next execve(2) changes to. To be called
/// while the host's /proc is still there, and after all hooks that are the host's programs: a child
/// inherits the setting.
pub(crate) fn set_label(process: &Process) -> Result<()> {
    if let Some(profile) = &process.apparmor {
        // Not /proc/self/attr/exec, which is another security module's where several are stacked.
        let path = "/proc/self/attr/apparmor/exec";
        fs::write(path, format!("exec {profile}"))
            .step_on("change to AppArmor profile", profile)?;
    }
    if let Some(label) = &process.selinux {
        fs::write("/proc/self/attr/exec", label).step_on("change to SELinux label", label)?;
    }
    Ok(())
}

/// Gives up everything that `process` may not have, also all descriptors but the standard streams
/// and `channel`. Whatever this process runs from here on can do no more than the program will, and
/// whoever traces it gains no more than that.
///
/// Returns the pass that lets its last few system calls through the filter.
pub(crate) fn assume(
    process: &Process,
    login: &Login,
    filter: &[u8],
    channel: BorrowedFd<'_>,
) -> Result<Pass> {
    let filter = if process.seccomp { filter } else { &[] };
    // What login(1) and every other runtime give a program, whatever the daemon was started with.
    umask(Mode::from_bits_truncate(0o022));
    // Raising a hard limit needs CAP_SYS_RESOURCE.
    limits::set_all(process)?;
    // chown(2) needs CAP_CHOWN.
    chown_stdio(&login.user);
    // A directory of the host that is still open would lead out of the container (CVE-2024-21626).
    sys::close_all_but(channel).step("close_range")?;
    let mut pass = Pass::default();
    if !process.no_new_privileges {
        // Without no_new_privs seccomp(2) needs CAP_SYS_ADMIN, which is gone after the next step.
        pass = seccomp::load_with_pass(filter)?;
    }
    become_user(&login.user, process.capabilities)?;
    // As the user: a directory that it may not enter must not become its working directory.
    enter_directory(&process.cwd)?;
    if process.no_new_privileges {
        prctl::set_no_new_privs().step("prctl PR_SET_NO_NEW_PRIVS")?;
        // As late as possible, so that the filter need not allow what the steps above do.
        pass = seccomp::load_with_pass(filter)?;
    }
    Ok(pass)
}

/// Gives the standard streams to the user, who could otherwise not open them again as /dev/stdout:
/// opening /proc/self/fd/1 checks the permissions of the pipe or terminal.
fn chown_stdio(user: &ResolvedUser) {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    chown_pipes(&streams, user.uid, user.gid);
    for terminal in streams.into_iter().filter(|fd| rustix::termios::isatty(fd)) {
        // EINVAL for an id that the user namespace does not map: the program can still use the
        // descriptors that it has.
        let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
        let _ = rustix::fs::fchown(terminal, Some(uid), Some(gid));
    }
}

/// Becomes `user`, with no more than `capabilities` in any of its sets (capabilities(7)).
pub(crate) fn become_user(user: &ResolvedUser, capabilities: Capabilities) -> Result<()> {
    // A daemon that lacks a capability itself, as one that runs in a container, cannot grant it.
    let current = rustix::thread::capabilities(None).step("capget")?.permitted;
    let granted = CapabilitySet::from_bits_retain(capabilities.granted) & current;
    let ambient = CapabilitySet::from_bits_retain(capabilities.ambient) & granted;
    // The bounding set first, because that needs CAP_SETPCAP. It limits what a set-user-ID program
    // can get back.
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !granted.contains(capability) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // The first number that this kernel does not know: there are no higher ones.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.step("drop a capability from the bounding set")?,
            }
        }
    }
    // Without this the change of uid clears the permitted set, from which the granted capabilities
    // are taken below.
    prctl::set_keepcaps(true).step("prctl PR_SET_KEEPCAPS")?;
    // Groups before the uid: both need a capability that root has (setgroups(2)).
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).step("setgroups")?;
    // Real, effective and saved ids, so that there is no way back.
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).step("setresgid")?;
    setresuid(uid, uid, uid).step("setresuid")?;
    // No inheritable capabilities but the ambient ones, which have to be in that set
    // (CVE-2022-24769).
    let sets = CapabilitySets { effective: granted, permitted: granted, inheritable: ambient };
    rustix::thread::set_capabilities(None, sets).step("capset")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient set")?;
    for capability in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .step("raise an ambient capability")?;
    }
    // A change of credentials sets this to what fs.suid_dumpable says (prctl(2)). Until execve(2)
    // nobody without CAP_SYS_PTRACE may look into this process.
    prctl::set_dumpable(false).step("prctl PR_SET_DUMPABLE")
}

/// Changes to the working directory, and makes sure that it is inside the root: for one outside,
/// getcwd(2) returns a path that begins with "(unreachable)" (CVE-2024-21626).
fn enter_directory(cwd: &Path) -> Result<()> {
    env::set_current_dir(cwd).step_on(ENTER_DIRECTORY, cwd)?;
    let current = env::current_dir().step_on("getcwd in", cwd)?;
    if current.is_absolute() {
        Ok(())
    } else {
        Err(invalid("working directory is outside the root:", current))
    }
}
