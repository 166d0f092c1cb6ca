//! The default seccomp profile, compiled to BPF. Default: "no" (EPERM), and "no such call" (ENOSYS) for numbers newer than this
//! list, so that libraries fall back as on an old kernel. What is allowed follows the capabilities that are granted, as in
//! Docker's and containerd's profiles.

use std::str::FromStr;

use berth_shim::spec::Capabilities;
use syscalls::Sysno;

use super::security::bit;
use crate::error::Result;

/// Everybody may: what works on the caller's own files, memory, processes, sockets and time.
const ALLOWED: &str = "accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown \
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat \
    fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue \
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid \
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set \
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open \
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv \
    preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom \
    recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg \
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority \
    setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown \
    sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs \
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime \
    timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid \
    write writev process_vm_readv process_vm_writev";

/// Allowed with a capability, because without it the kernel refuses anyway or the call is a way to gain it.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
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

/// personality(2): Linux, 32-bit addresses, and the question what it is.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Sockets to the hypervisor's other guests are nobody's business in a container.
const AF_VSOCK: u32 = 40;
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: new namespaces need CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// x86-64's second table of calls, which has seen more bugs than users.
const X32: u32 = 0x4000_0000;

// classic BPF (linux/bpf_common.h) and seccomp's answers (linux/seccomp.h)
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// Low half of the first argument, little endian.
const ARGUMENT: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    value: u32,
}

/// The filter as `struct sock_filter[]`, for a process with these capabilities.
pub(super) fn default_profile(capabilities: Capabilities) -> Result<Vec<u8>> {
    let program = compile(capabilities)?;
    let bytes = |i: &Instruction| {
        let [a, b] = i.code.to_ne_bytes();
        let [c, d, e, f] = i.value.to_ne_bytes();
        [a, b, i.on_true, i.on_false, c, d, e, f]
    };
    Ok(program.iter().flat_map(bytes).collect())
}

/// Numbers of names; what this architecture does not have is left out.
fn numbers(names: &str) -> impl Iterator<Item = u32> {
    names.split_ascii_whitespace().filter_map(|name| Sysno::from_str(name).ok()).map(|number| number.id() as u32)
}

fn compile(capabilities: Capabilities) -> Result<Vec<Instruction>> {
    let mut allowed: Vec<u32> = numbers(ALLOWED).collect();
    for (capability, names) in BY_CAPABILITY {
        if capabilities.granted & bit(capability)? != 0 {
            allowed.extend(numbers(names));
        }
    }
    allowed.sort_unstable();
    allowed.dedup();
    let newest = Sysno::iter().map(|number| number.id() as u32).max().unwrap_or(0);
    let one = |code, value| Instruction { code, on_true: 0, on_false: 0, value };
    let answer = |value| one(RETURN, value);
    let jump = |code, value, on_true, on_false| Instruction { code, on_true, on_false, value };

    let mut program =
        vec![one(LOAD, ARCH), jump(JUMP_EQUAL, AUDIT_ARCH, 1, 0), answer(ERRNO | ENOSYS), one(LOAD, NUMBER)];
    program.extend([jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1), answer(ERRNO | ENOSYS)]);
    program.extend([jump(JUMP_GREATER_OR_EQUAL, newest + 1, 0, 1), answer(ERRNO | ENOSYS)]);
    // What needs a look at an argument.
    let number = |sysno: Sysno| sysno.id() as u32;
    if !allowed.contains(&number(Sysno::clone)) {
        let look = [one(LOAD, ARGUMENT), jump(JUMP_SET, CLONE_NAMESPACES, 1, 0), answer(ALLOW), answer(ERRNO | EPERM)];
        program.push(jump(JUMP_EQUAL, number(Sysno::clone), 0, look.len() as u8));
        program.extend(look);
        // Its flags are behind a pointer: with ENOSYS the C library falls back to clone.
        program.extend([jump(JUMP_EQUAL, number(Sysno::clone3), 0, 1), answer(ERRNO | ENOSYS)]);
    }
    let look = [one(LOAD, ARGUMENT), jump(JUMP_EQUAL, AF_VSOCK, 1, 0), answer(ALLOW), answer(ERRNO | EPERM)];
    program.push(jump(JUMP_EQUAL, number(Sysno::socket), 0, look.len() as u8));
    program.extend(look);
    program.push(jump(JUMP_EQUAL, number(Sysno::personality), 0, PERSONALITIES.len() as u8 + 3));
    program.push(one(LOAD, ARGUMENT));
    let left = |index: usize| (PERSONALITIES.len() - index) as u8;
    program.extend(PERSONALITIES.iter().enumerate().map(|(index, value)| jump(JUMP_EQUAL, *value, left(index), 0)));
    program.extend([answer(ERRNO | EPERM), answer(ALLOW)]);
    for (first, last) in ranges(&allowed) {
        program.extend([
            jump(JUMP_GREATER_OR_EQUAL, first, 0, 2),
            jump(JUMP_GREATER_OR_EQUAL, last + 1, 1, 0),
            answer(ALLOW),
        ]);
    }
    program.push(answer(ERRNO | EPERM));
    Ok(program)
}

/// Runs of numbers, first and last: far fewer comparisons than numbers.
fn ranges(sorted: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do, for the instructions that `compile` uses.
    fn decide(program: &[Instruction], number: u32, argument: u32, arch: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, on_true, on_false, value } = program[at];
            let jump = |holds: bool| usize::from(if holds { on_true } else { on_false });
            at += 1 + match code {
                LOAD => {
                    accumulator = match value {
                        NUMBER => number,
                        ARCH => arch,
                        ARGUMENT => argument,
                        other => panic!("load of {other}"),
                    };
                    0
                }
                JUMP_EQUAL => jump(accumulator == value),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= value),
                JUMP_SET => jump(accumulator & value != 0),
                RETURN => return value,
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    #[test]
    fn the_profile_follows_the_capabilities() {
        let plain = compile(Capabilities::default()).unwrap();
        let admin = compile(Capabilities { granted: bit("SYS_ADMIN").unwrap(), ambient: 0 }).unwrap();
        let id = |sysno: Sysno| sysno.id() as u32;
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
            (id(Sysno::socket), AF_VSOCK, no, no),
            (id(Sysno::personality), 0x8, ALLOW, ALLOW),
            (id(Sysno::personality), 0xffff_ffff, ALLOW, ALLOW),
            (id(Sysno::personality), 0x4_0000, no, no),
            (5000, 0, missing, missing),
            (X32 | 1, 0, missing, missing),
        ] {
            assert_eq!(decide(&plain, number, argument, AUDIT_ARCH), for_plain, "{number} {argument:#x}");
            assert_eq!(decide(&admin, number, argument, AUDIT_ARCH), for_admin, "{number} {argument:#x}");
        }
        assert_eq!(decide(&plain, id(Sysno::read), 0, 0x4000_0003), missing);
        // The kernel's limit is 4096 instructions.
        assert!(admin.len() < 1000, "{}", admin.len());
    }
}
