//! What the process that unpacks gives up before it reads the first byte.
//!
//! Each of these alone should keep it from everything but its layer; they are several because each
//! has holes. Landlock does not cover chmod(2) and the like, chroot(2) does not cover descriptors,
//! capabilities are about whole classes of actions, and a filter sees no paths.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::chroot,
    },
};

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, setns};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_name, set_no_new_privs},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// How much memory the process may use. Most layers need 10 MiB, and some with a large zstd window
/// 130; the rest is for paths and times of directories.
pub(super) const MEMORY: u64 = 512 << 20;
/// The layer's directory, one file or directory at a time, the pipes and what std needs.
const DESCRIPTORS: u64 = 64;

/// What root needs to give files to others and to change what it has given away. Not CAP_MKNOD and
/// not CAP_SYS_ADMIN: devices and opaque directories are the daemon's, see `finish`.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP);

/// Confines this process to `directory`, which is its working directory, and to the empty network
/// namespace `network`. Returns whether Landlock is part of that.
///
/// # Errors
/// One of the means does not work here. Only Landlock may be missing, before Linux 5.19.
pub(super) fn confine(directory: BorrowedFd<'_>, network: OwnedFd) -> anyhow::Result<bool> {
    set_name(c"unpack").context("set the name")?;
    // If memory runs out, this is the process to kill. Without /proc it is one among others.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    setns(network, CloneFlags::CLONE_NEWNET).context("join the empty network namespace")?;
    chroot(".").context("chroot")?;
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Nofile, DESCRIPTORS)?;
    limit(Resource::Core, 0)?;
    // Before the capabilities go, with which a program could get them back.
    set_no_new_privs(true).context("set no_new_privs")?;
    let has_landlock = restrict_paths(directory).context("Landlock")?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: CAPABILITIES,
            permitted: CAPABILITIES,
            inheritable: CapabilitySet::empty(),
        },
    )
    .context("drop capabilities")?;
    apply_filter(&filter()?).context("load the seccomp filter")?;
    Ok(has_landlock)
}

fn limit(resource: Resource, most: u64) -> anyhow::Result<()> {
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, limit).with_context(|| format!("limit {resource:?}"))
}

/// Allows the process to make, read and change files in `directory`, and nothing elsewhere: no
/// other file, no TCP port, no socket and no process outside. Returns whether the kernel does that.
fn restrict_paths(directory: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let mut allowed = AccessFs::from_all(ABI::V5);
    allowed.remove(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeBlock);
    let status = Ruleset::default()
        // Without this right, links between directories would fail, which is worse than none of it.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rule(PathBeneath::new(directory, allowed))?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The system calls of `unpack`, and those that std and libc make for it: files, memory, the thread
/// that inflates. Whatever is not here seems to be missing from the kernel, so that libraries fall
/// back to what is.
const ALLOWED: &[libc::c_long] = &[
    // The blob, the report, and files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fchdir,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_lsetxattr,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // Threads and their end.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Threads, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Memory, but no programs in it.
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // A signal to itself: abort(3) ends in that.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own)?]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, missing, SeccompAction::Allow, arch)?.try_into()?)
}

/// Allows a call whose argument number `index` is so.
fn when(index: u8, operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::{self, File},
        net::TcpListener,
        os::{fd::AsFd, unix::net::UnixDatagram},
        process::{Command, Stdio},
    };

    use rustix::{
        fs::{
            AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat,
            openat,
        },
        io::Errno,
        process::{Signal, getppid, kill_process},
    };

    use super::*;

    /// In this variable is the directory for the process that is confined.
    const DIRECTORY: &str = "BERTH_TEST_CONFINED";

    /// What cannot be undone is done in another process: this program again, with the test below. As
    /// root of a user namespace, so that it needs no privileges.
    #[test]
    fn a_confined_process_reaches_its_directory_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "unpacker::confine::tests::inside", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(fs::exists(directory.path().join("done")).unwrap(), "{output:?}");
    }

    #[test]
    #[ignore = "the test above runs it in a process of its own"]
    fn inside() {
        let path = env::var_os(DIRECTORY).unwrap();
        env::set_current_dir(path).unwrap();
        let directory = File::open(".").unwrap();
        // Whatever went wrong, this is a way out of the root.
        let outside = File::open("/").unwrap();
        let network = File::open("/proc/self/ns/net").unwrap();
        let parent = getppid().unwrap();
        let has_landlock = confine(directory.as_fd(), network.into()).unwrap();

        assert!(fs::read("/etc/passwd").is_err());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if has_landlock {
            let read = openat(&outside, "etc/passwd", flags, Mode::empty());
            assert_eq!(read.unwrap_err(), Errno::ACCESS);
        }
        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        assert!(UnixDatagram::unbound().is_err());
        assert_eq!(kill_process(parent, Signal::CONT), Err(Errno::NOSYS));
        assert!(Command::new("/proc/self/exe").spawn().is_err());
        assert_eq!(chroot("/").unwrap_err().raw_os_error(), Some(libc::ENOSYS));
        let device = |number| mknodat(CWD, "node", FileType::CharacterDevice, Mode::RUSR, number);
        assert_eq!(device(makedev(1, 3)), Err(Errno::PERM));

        // A whiteout is not a device.
        device(0).unwrap();
        mkdirat(CWD, "a", Mode::RWXU).unwrap();
        fs::write("a/file", "x").unwrap();
        fs::hard_link("a/file", "linked").unwrap();
        let root = (Some(Uid::ROOT), Some(Gid::ROOT));
        chownat(CWD, "linked", root.0, root.1, AtFlags::empty()).unwrap();
        std::thread::spawn(|| fs::read("linked")).join().unwrap().unwrap();
        fs::write("done", "").unwrap();
    }
}
