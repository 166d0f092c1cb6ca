//! What the program gives up before it reads what a container has sent.

use std::collections::BTreeMap;

use anyhow::Context;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What is needed to enter a namespace and to set rules in it.
const CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::NET_ADMIN);

/// Keeps two capabilities, and the system calls of a server.
///
/// # Errors
/// The kernel refuses one of that.
pub(crate) fn confine() -> anyhow::Result<()> {
    // Each container has three descriptors, and more for what is forwarded.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raise the limit of open files")?;
    set_no_new_privs(true).context("set no_new_privs")?;
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("drop capabilities")?;
    apply_filter(&filter()?).context("load the seccomp filter")
}

/// The system calls of the program, and those that std, tokio and the C library make for it. None that
/// makes a process or a mount, loads a program into the kernel, or traces.
const ALLOWED: &[libc::c_long] = &[
    // Its directory.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    // Sockets, in the network namespaces of containers.
    libc::SYS_setns,
    libc::SYS_socket,
    // For tokio's signals, which are there when the whole workspace is built at once.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // Time, signals, and the end.
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What musl calls where newer kernels have only one of those above.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_accept,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLDER: &[libc::c_long] = &[];

fn filter() -> anyhow::Result<BpfProgram> {
    let allowed = ALLOWED.iter().chain(ALLOWED_OLDER);
    let mut rules: BTreeMap<_, _> = allowed.map(|call| (*call, Vec::new())).collect();
    // Memory, but no programs in it.
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // A signal to itself: abort(3) ends in that.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_tgkill, libc::SYS_tkill] {
        rules.insert(call, vec![when(0, SeccompCmpOp::Eq, own)?]);
    }
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, missing, SeccompAction::Allow, arch)?.try_into()?)
}

/// Allows a call whose argument number `index` is so.
fn when(index: u8, operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}
