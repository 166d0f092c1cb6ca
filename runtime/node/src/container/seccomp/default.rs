//! The default profile. A call that it does not allow fails with EPERM, and one that is newer than
//! this list with ENOSYS, so that libraries fall back as on an old kernel. Some calls are allowed
//! only with a capability, as in the profiles of Docker and containerd.

use berth_base::error::Result;
use berth_shim::spec::Capabilities;

use super::{
    bpf::{ARCHES, ENOSYS, EPERM, Operator},
    profile::{Action, Profile, ProfileCondition, ProfileRule},
};
use crate::container::spec::capability_bit;

/// Allowed to everybody: calls on the caller's own files, memory, processes, sockets and time.
const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod \
    chown clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat \
    fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr \
    fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake \
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid \
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom \
    getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday \
    getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set \
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link \
    linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat \
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod \
    mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall \
    munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 \
    preadv preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg \
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid \
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid \
    setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd \
    signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range \
    syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname \
    unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev \
    process_vm_readv process_vm_writev";

/// Besides those, what 32-bit programs use: their tables have several generations of some calls.
const ALLOWED_32: &str = "\
    _llseek _newselect arm_fadvise64_64 breakpoint cacheflush chown32 clock_adjtime64 \
    clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64 \
    fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 \
    getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 \
    mq_timedreceive_time64 mq_timedsend_time64 nice oldfstat oldlstat oldolduname oldstat olduname \
    ppoll_time64 pselect6_time64 readdir recv recvmmsg_time64 rt_sigtimedwait_time64 \
    sched_rr_get_interval_time64 semtimedop_time64 send sendfile64 set_tls setfsgid32 setfsuid32 \
    setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sgetmask sigaction \
    signal sigpending sigprocmask sigreturn sigsuspend socketcall ssetmask stat64 statfs64 \
    sync_file_range2 time64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 \
    truncate64 ugetrlimit utimensat_time64 waitpid";

/// Allowed with a capability only. Without it the kernel refuses them anyway, or they have been
/// ways to gain it.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday clock_settime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
];

/// Arguments of personality(2): PER_LINUX, PER_LINUX32, UNAME26 with both, and the query for the
/// present one. Others switch off protections such as address space randomization.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The families of socket(2), up to the newest one, except for two: AF_ALG (38), the kernel's
/// ciphers, through which a container could write to files that it may only read (CVE-2026-31431),
/// and AF_VSOCK (40), which reaches the hypervisor and its other guests.
///
/// The allowed ones are listed, not the refused ones: the kernel looks at 32 of the argument's 64
/// bits, so that every refused family has other numbers, too.
///
/// 32-bit programs may also use socketcall(2), whose arguments are in memory, where no filter sees
/// them. Without that call many of them cannot open a socket at all; AppArmor refuses the families
/// there.
const FAMILIES_BELOW: u64 = 38;
const MORE_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. A new user namespace needs no privilege and makes its
/// owner root of all the others, so that all of them are refused without CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The default profile for a process with these capabilities.
pub(super) fn default(capabilities: Capabilities) -> Result<Profile> {
    let names = |names: &str| names.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut allowed = [names(ALLOWED), names(ALLOWED_32)].concat();
    for (capability, calls) in BY_CAPABILITY {
        if capabilities.granted & capability_bit(capability)? != 0 {
            allowed.extend(names(calls));
        }
    }
    let allow = |name: &str, op, value, value_two| ProfileRule {
        args: vec![ProfileCondition { index: 0, value, value_two, op }],
        ..ProfileRule::allow(names(name))
    };
    // All conditions of a rule must hold, and libseccomp, which another runtime uses, accepts one
    // for each argument. "One of these values" is therefore one rule for each value.
    let mut syscalls = vec![allow("socket", Operator::Less, FAMILIES_BELOW, 0)];
    syscalls.extend(MORE_FAMILIES.map(|family| allow("socket", Operator::Equal, family, 0)));
    syscalls.extend(PERSONALITIES.map(|value| allow("personality", Operator::Equal, value, 0)));
    if !allowed.iter().any(|name| name == "clone") {
        syscalls.push(allow("clone", Operator::MaskedEqual, CLONE_NAMESPACES, 0));
        // The flags of clone3(2) are in memory, where no filter sees them. With ENOSYS the C
        // library falls back to clone(2).
        let (action, errno_ret) = (Action::Errno, Some(ENOSYS));
        syscalls.push(ProfileRule { action, errno_ret, ..ProfileRule::allow(names("clone3")) });
    }
    syscalls.push(ProfileRule::allow(allowed));
    let architectures = ARCHES.iter().map(|arch| arch.name.to_owned()).collect();
    Ok(Profile {
        default_action: Action::Errno,
        default_errno_ret: Some(EPERM),
        architectures,
        syscalls,
    })
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::{
        super::bpf::{ALLOW, ERRNO, Policy, X32, compile, tests::run},
        *,
    };

    const AF_ALG: u64 = 38;
    const AF_VSOCK: u64 = 40;

    fn id(sysno: Sysno) -> u32 {
        sysno.id() as u32
    }

    #[test]
    fn the_default_follows_the_capabilities() {
        let program = |capabilities| {
            let policy = default(capabilities).unwrap().policy().unwrap();
            compile(&Policy { unknown: ERRNO | ENOSYS, ..policy }, &ARCHES.each_ref()).unwrap()
        };
        let plain = program(Capabilities::default());
        let admin = Capabilities { granted: capability_bit("SYS_ADMIN").unwrap(), ambient: 0 };
        let admin = program(admin);
        let (no, missing) = (ERRNO | EPERM, ERRNO | ENOSYS);
        for (number, argument, for_plain, for_admin) in [
            (id(Sysno::read), 0, ALLOW, ALLOW),
            (id(Sysno::mount), 0, no, ALLOW),
            (id(Sysno::unshare), 0, no, ALLOW),
            (id(Sysno::clone), 0x11, ALLOW, ALLOW),
            (id(Sysno::clone), 0x1000_0011, no, ALLOW),
            (id(Sysno::clone), 0x0002_0000, no, ALLOW),
            (id(Sysno::clone3), 0, missing, ALLOW),
            (id(Sysno::keyctl), 0, no, no),
            (id(Sysno::io_uring_setup), 0, no, no),
            (id(Sysno::socket), 2, ALLOW, ALLOW),
            (id(Sysno::socket), 37, ALLOW, ALLOW),
            (id(Sysno::socket), AF_ALG, no, no),
            (id(Sysno::socket), 39, ALLOW, ALLOW),
            (id(Sysno::socket), AF_VSOCK, no, no),
            (id(Sysno::socket), 41, ALLOW, ALLOW),
            (id(Sysno::socket), 46, no, no),
            // The kernel would take both as AF_ALG, and this one as AF_VSOCK.
            (id(Sysno::socket), 1 << 32 | AF_ALG, no, no),
            (id(Sysno::socket), u64::MAX << 32 | AF_ALG, no, no),
            (id(Sysno::socket), 1 << 32 | AF_VSOCK, no, no),
            (id(Sysno::personality), 0x8, ALLOW, ALLOW),
            (id(Sysno::personality), 0xffff_ffff, ALLOW, ALLOW),
            (id(Sysno::personality), 0x4_0000, no, no),
            (5000, 0, missing, missing),
            (X32 | 1, 0, missing, missing),
        ] {
            let arguments = [argument, 0, 0, 0, 0, 0];
            assert_eq!(
                run(&plain, number, arguments, ARCHES[0].audit),
                for_plain,
                "{number} {argument:#x}"
            );
            assert_eq!(
                run(&admin, number, arguments, ARCHES[0].audit),
                for_admin,
                "{number} {argument:#x}"
            );
        }
        // 32-bit programs, by their own table, and nobody by another machine's.
        let call = |name: &str, argument| {
            run(
                &plain,
                (ARCHES[1].number)(name).unwrap(),
                [argument, 0, 0, 0, 0, 0],
                ARCHES[1].audit,
            )
        };
        assert_eq!(
            (call("mmap2", 0), call("mount", 0), call("clone", 0x1000_0011)),
            (ALLOW, no, no)
        );
        assert_eq!(
            (call("fcntl64", 0), call("socket", AF_VSOCK), call("socket", AF_ALG)),
            (ALLOW, no, no)
        );
        assert_eq!(run(&plain, id(Sysno::read), [0; 6], 0x4000_0015), missing);
    }
}
